"""A closed loop: N callers, each of which sends its next image when its last is answered.

tfs bench --concurrency 1,8,32 --seconds 10 samples/*.png
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tfs_client._client import Client
from tfs_client._errors import TFSError

PAUSE_SECONDS = 0.1  # after a failed call, so that a dead server is not hammered
WARM_UP_SHARE = 0.2  # of the measured time, before it


@dataclass
class Result:
    """What the callers saw.

    Attributes:
        callers: requests under way at a time.
        seconds: how long was measured.
        latencies: of each call that was right and ended within that time, in seconds.
        wrong: calls whose answer was not the expected class.
        errors: how many calls failed, by what they said.
    """

    callers: int
    seconds: float
    latencies: list[float] = field(default_factory=list)
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)


def measure(
    client: Client,
    images: Sequence[bytes],
    expected: Sequence[str],
    callers: int,
    seconds: float,
) -> Result:
    """Send single images for a while and record what comes back.

    Args:
        client: of the server.
        images: encoded, sent in turn.
        expected: the class that each must be answered with.
        callers: requests under way at a time.
        seconds: to measure for, after a warm-up.
    """
    result = Result(callers, seconds)
    begin = time.monotonic() + WARM_UP_SHARE * seconds
    end = begin + seconds
    turn = itertools.count()
    lock = threading.Lock()
    stop = threading.Event()

    def call_in_turn() -> None:
        for started, image, label in _until(end, stop, turn, images, expected):
            try:
                answer = client.classify(image)
            except TFSError as error:
                with lock:
                    result.errors[str(error)] += 1
                stop.wait(PAUSE_SECONDS)
                continue
            ended = time.monotonic()
            with lock:
                if answer.label != label:
                    result.wrong += 1
                elif started >= begin and ended <= end:
                    result.latencies.append(ended - started)

    threads = [threading.Thread(target=call_in_turn) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:  # on Ctrl-C the client is closed next, which no call should see
        stop.set()
        for thread in threads:
            thread.join()
    return result


def _until(
    end: float,
    stop: threading.Event,
    turn: Iterator[int],
    images: Sequence[bytes],
    expected: Sequence[str],
) -> Iterator[tuple[float, bytes, str]]:
    while (now := time.monotonic()) < end and not stop.is_set():
        position = next(turn) % len(images)
        yield now, images[position], expected[position]
