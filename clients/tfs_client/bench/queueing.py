"""A replica under load, simulated: arrivals -> TensorFlow Serving's batching queue -> shared cores.

What a request takes beside its batch (it is sent, received, parsed) is done one request after
another, as one process's event loop and another's interpreter lock have it. Cores are shared with
it, too.

The queue is that of TensorFlow's SharedBatchScheduler (core/kernels/batching_util, version 2.20):
a request goes into the open batch; if it does not fit, that one is closed, and a request that would
open one batch more than `max_enqueued_batches` is rejected. A batch thread that is free takes the
oldest closed batch, or the open one if it is full or has been open for `batch_timeout_micros`.

A batch alone does not keep all cores busy all the time. Batches that run at once slow each other
only as far as they need more than all cores together, and then all alike (processor sharing;
Kleinrock, "Time-shared Systems", 1967).
"""

from __future__ import annotations

import functools
import heapq
import math
import random
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from tfs_client._tensors import Array
from tfs_client.bench.batching import Batching
from tfs_client.bench.loads import Closed, Poisson

# An idle batch thread looks again after this time (SharedBatchScheduler::ThreadLogic): so late at
# the most does it find that a batch has been open for long enough.
POLL_SECONDS = 1e-3
WARM_UP = 0.1  # of the requests

Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Service:
    """What computing costs.

    Attributes:
        seconds: images in a batch -> how long it takes when nothing else runs; in rising order.
        demand: images in a batch -> what share of all cores it uses then.
        spread: what a batch's time is multiplied by, drawn anew for each.
        request: seconds before a request is in the queue, in which it takes as much from batches as
            the largest of them: where an operation has all cores, its parts wait for the last.
    """

    seconds: dict[int, float]
    demand: dict[int, float]
    spread: Sequence[float] = (1.0,)
    request: float = 0.0

    def of(self, images: int) -> tuple[float, float]:
        """Seconds and demand of a batch; on a line between sizes that are known."""
        return _between(self.seconds, images), _between(self.demand, images)


def _between(known: dict[int, float], images: int) -> float:
    return float(np.interp(images, list(known), list(known.values())))


@dataclass(frozen=True)
class Outcome:
    """What came of a load.

    Attributes:
        latencies: of the requests that were answered, in seconds.
        rejected: share of the requests that found the queue full.
        throughput: requests that were answered a second.
        batch: images in a batch on average, without padding.
        busy: share of what the cores can do that was done.
    """

    latencies: Array = field(repr=False)
    rejected: float
    throughput: float
    batch: float
    busy: float

    def percentile(self, q: float) -> float:
        """In seconds."""
        return float(np.percentile(self.latencies, q))

    @property
    def in_flight(self) -> float:
        """Requests in the replica on average, by Little's law."""
        return self.throughput * float(self.latencies.mean())


def simulate(
    load: Poisson | Closed,
    service: Service,
    batching: Batching | None,
    requests: int,
    seed: int = 0,
) -> Outcome:
    """Send requests of one image each to a replica until so many are answered or rejected.

    Args:
        load: callers, or a rate in requests a second.
        service: what computing costs.
        batching: with `num_batch_threads`; None for each request alone, all at once.
        requests: how many; a first tenth is not counted.
        seed: of arrivals and of service times.
    """
    env = simpy.Environment()
    cores = _Cores(env, service, random.Random(seed))
    server = _Batched(env, cores, batching, seed) if batching else _Alone(cores)
    sent = _Requests(env, cores, server, requests)
    if isinstance(load, Closed):
        for _ in range(load.callers):
            env.process(_caller(sent))
    else:
        env.process(_arrivals(sent, load.moments(seed)))
    env.run(sent.complete)
    return sent.outcome()


def _caller(requests: _Requests) -> Process:
    while True:
        yield from requests.one()


def _arrivals(requests: _Requests, moments: Iterator[float]) -> Process:
    for at in moments:
        yield requests.env.timeout(at - requests.env.now)
        requests.env.process(requests.one())


class _Requests:
    """What becomes of each."""

    def __init__(
        self, env: simpy.Environment, cores: _Cores, server: _Batched | _Alone, count: int
    ) -> None:
        self.env = env
        self.complete = env.event()
        self._cores = cores
        self._server = server
        self._one_at_a_time = simpy.Resource(env)
        self._count = count
        self._rejected = 0
        self._answered: list[tuple[float, float]] = []  # when, and how long it took

    def one(self) -> Process:
        """From when it is sent until it is answered or rejected."""
        sent = self.env.now
        if self._cores.takes_requests:
            with self._one_at_a_time.request() as turn:
                yield turn
                yield self._cores.request()
        answer = self._server.request()
        if answer is None:
            self._rejected += 1
        else:
            yield answer
            self._answered.append((self.env.now, self.env.now - sent))
        if len(self._answered) + self._rejected == self._count:
            self.complete.succeed()

    def outcome(self) -> Outcome:
        """Of all but the first tenth."""
        cores = self._cores
        counted = self._answered[int(WARM_UP * len(self._answered)) :]
        span = counted[-1][0] - counted[0][0]
        return Outcome(
            np.array([took for _, took in counted]),
            self._rejected / self._count,
            (len(counted) - 1) / span,
            cores.images / cores.batches,
            cores.used / self.env.now,
        )


class _Alone:
    """Batching off: every request is computed alone, and all at once."""

    def __init__(self, cores: _Cores) -> None:
        self._cores = cores

    def request(self) -> simpy.Event:
        """Happens when it is answered."""
        return self._cores.compute(1, 1)


class _Batched:
    """The queue, and the threads that take batches from it."""

    def __init__(
        self, env: simpy.Environment, cores: _Cores, batching: Batching, seed: int
    ) -> None:
        self._env = env
        self._cores = cores
        self._batching = batching
        self._timeout = batching.batch_timeout_micros / 1e6
        self._chance = random.Random(seed)
        self._batches: deque[list[simpy.Event]] = deque([[]])  # the last one is open
        self._due = math.inf  # when the open one has been open for long enough
        self._changed = env.event()
        for _ in range(batching.num_batch_threads):
            env.process(self._thread())

    def request(self) -> simpy.Event | None:
        """Happens when it is answered; None if the queue is full."""
        most = self._batching.largest
        if len(self._batches[-1]) == most:
            if len(self._batches) >= self._batching.max_enqueued_batches:
                return None
            self._batches.append([])
        answer = self._env.event()
        if not self._batches[-1]:
            self._due = self._env.now + self._timeout
            late = self._chance.uniform(0, POLL_SECONDS) if self._timeout else 0.0
            self._env.timeout(self._timeout + late).callbacks.append(self._tell)
        self._batches[-1].append(answer)
        if len(self._batches[-1]) == most:
            self._tell()
        return answer

    def _tell(self, _: simpy.Event | None = None) -> None:
        """Have idle threads look."""
        changed, self._changed = self._changed, self._env.event()
        changed.succeed()

    def _take(self) -> list[simpy.Event]:
        """The batch to be computed next; an empty one for none yet."""
        if len(self._batches) == 1:
            (batch,) = self._batches
            full = len(batch) == self._batching.largest
            if not batch or not (full or self._env.now >= self._due):
                return []
            self._batches.append([])
        return self._batches.popleft()

    def _thread(self) -> Process:
        while True:
            batch = self._take()
            if not batch:
                yield self._changed
                continue
            yield self._cores.compute(len(batch), self._batching.padded(len(batch)))
            for answer in batch:
                answer.succeed()


class _Cores:
    """What batches are computed on.

    `_given` is how much computing each of what runs has been given since the beginning: a clock
    that goes slower while they need more than all cores. A batch ends when that clock has passed
    the seconds that it takes alone.
    """

    def __init__(self, env: simpy.Environment, service: Service, chance: random.Random) -> None:
        self.used = 0.0  # seconds of all cores
        self.images = self.batches = 0
        self._env = env
        self.takes_requests = service.request > 0
        self._of_request = service.request, service.demand[max(service.demand)]
        self._service = functools.cache(service.of)
        self._spread = service.spread
        self._chance = chance
        self._given = self._at = 0.0
        self._timers = 0  # only the last one counts
        self._running: list[tuple[float, int, float, simpy.Event]] = []  # by when they end
        self._begun = 0  # of these, ever
        self._demand = 0.0  # of all that run

    def compute(self, images: int, size: int) -> simpy.Event:
        """Happens when a batch has been computed; `size` is what it was padded to."""
        self.images += images
        self.batches += 1
        seconds, demand = self._service(size)
        return self._run(seconds * self._chance.choice(self._spread), demand)

    def request(self) -> simpy.Event:
        """Happens when a request is in the queue."""
        return self._run(*self._of_request)

    def _run(self, seconds: float, demand: float) -> simpy.Event:
        self._advance()
        self._begun += 1
        ended = self._env.event()
        heapq.heappush(self._running, (self._given + seconds, self._begun, demand, ended))
        self._demand += demand
        self._set_timer()
        return ended

    def _advance(self) -> None:
        elapsed, self._at = self._env.now - self._at, self._env.now
        self._given += elapsed / max(1.0, self._demand)
        self.used += elapsed * min(1.0, self._demand)

    def _set_timer(self) -> None:
        self._timers += 1
        left = (self._running[0][0] - self._given) * max(1.0, self._demand)
        timer = self._env.timeout(max(0.0, left), self._timers)
        timer.callbacks.append(self._end_first)

    def _end_first(self, timer: simpy.Event) -> None:
        if timer.value != self._timers:
            return
        self._advance()
        _, _, demand, ended = heapq.heappop(self._running)
        # Not by subtraction alone, whose errors would add up.
        self._demand = self._demand - demand if self._running else 0.0
        ended.succeed()
        if self._running:
            self._set_timer()
