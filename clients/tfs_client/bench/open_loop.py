"""An open loop: requests at moments set beforehand, whether or not earlier ones are answered.

    tfs bench --rate 20,50,100 --seconds 10 samples/*.png

Users do not wait for each other. A closed loop sends less while the server stalls, and so hides the
stall; here a request's latency counts from the moment it was meant to be sent, also when the sender
itself was late (coordinated omission: Tene, "How NOT to measure latency").
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tfs_client._aio import AsyncClient
from tfs_client._errors import TFSError
from tfs_client.bench.closed_loop import WARM_UP_SHARE

ARRIVALS = ("poisson", "constant")
# A sender that is later than this is itself what is measured.
MOST_LAG_SECONDS = 0.010
LAG_SHARE = 0.99  # of the requests


@dataclass
class Result:
    """What was sent and what came back.

    Attributes:
        rate: requests meant to be sent a second.
        seconds: for how long, after the warm-up.
        sent: requests that were meant to be sent in that time.
        latencies: of those that were right, in seconds from when they were meant to be sent.
        lags: how late each was sent, in seconds.
        wrong: calls whose answer was not the expected class.
        errors: how many calls failed, by what they said.
    """

    rate: float
    seconds: float
    sent: int = 0
    latencies: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def lag(self) -> float:
        """What 99 of a hundred requests were late at the most, in seconds."""
        lags = sorted(self.lags)
        return lags[int(LAG_SHARE * (len(lags) - 1))] if lags else 0.0

    @property
    def valid(self) -> bool:
        """Whether the sender kept up, so that it is the server that was measured."""
        return self.lag <= MOST_LAG_SECONDS


def moments(rate: float, seconds: float, arrivals: str, seed: int) -> Iterator[float]:
    """When requests are to be sent, in seconds from the start.

    Args:
        rate: a second, on average.
        seconds: the last is before.
        arrivals: `poisson`, as from many users who do not know of each other, or `constant`.
        seed: of the chance.
    """
    chance = random.Random(seed)
    at = 0.0
    while True:
        at += chance.expovariate(rate) if arrivals == "poisson" else 1 / rate
        if at >= seconds:
            return
        yield at


async def measure(
    client: AsyncClient,
    images: Sequence[bytes],
    expected: Sequence[str],
    rate: float,
    seconds: float,
    arrivals: str = "poisson",
    seed: int = 0,
) -> Result:
    """Send single images at a rate for a while and record what comes back.

    Args:
        client: of the server.
        images: encoded, sent in turn.
        expected: the class that each must be answered with.
        rate: requests a second.
        seconds: to measure for, after a warm-up.
        arrivals: `poisson` or `constant`.
        seed: of the chance.
    """
    result = Result(rate, seconds)
    warm_up = WARM_UP_SHARE * seconds
    start = time.perf_counter()

    async def call(position: int, meant: float, measured: bool) -> None:
        if measured:
            result.lags.append(time.perf_counter() - meant)
        try:
            answer = await client.classify(images[position])
        except TFSError as error:
            if measured:
                result.errors[str(error)] += 1
            return
        if not measured:
            return
        if answer.label != expected[position]:
            result.wrong += 1
            return
        result.latencies.append(time.perf_counter() - meant)

    tasks = set()
    try:
        turn = itertools.count()
        for at in moments(rate, warm_up + seconds, arrivals, seed):
            await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
            measured = at >= warm_up
            result.sent += measured
            task = asyncio.create_task(call(next(turn) % len(images), start + at, measured))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return result
