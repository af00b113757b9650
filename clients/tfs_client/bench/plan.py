"""A measured report -> how many replicas hold a rate, by simulation; see `queueing`.

    tfs bench --concurrency 1,2 --batch 1,2,4,8,16 --payload uint8 --metrics URL --output report/
    tfs plan report/ --rate 50000 --p99-ms 100 --batching serving/config/batching.config

The report is of one replica that is served with the same batching file. Its measurements say all
that the simulation needs:

    1 caller, n images a request   how long a batch of n takes alone: the median, less the time that
                                   the queue waits for more, and what a request takes beside that
    1 caller, 1 image a request    how the time of a batch varies
    2 callers, or as many as       how long a batch takes when no core is ever idle
    there are batch threads,
    the largest batches
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from tfs_client._errors import TFSError
from tfs_client.bench.batching import Batching
from tfs_client.bench.loads import Poisson
from tfs_client.bench.measure import Measurement, together
from tfs_client.bench.queueing import POLL_SECONDS, Outcome, Service, simulate
from tfs_client.bench.report import Report

REQUESTS = 30_000  # of each simulation, so that 270 lie beyond its p99
PRECISION = 0.01  # of the rate that a replica holds
LOWEST = 0.01  # of what its cores can do
SEED = 1
TAIL = 99.0
# Kubernetes' HorizontalPodAutoscaler does nothing while the metric is within 10 % of its target
# (--horizontal-pod-autoscaler-tolerance), so that every replica may have 10 % more to do.
TOLERANCE = 1.1
QUANTILES = tuple(n + 0.5 for n in range(100))  # of a batch's time, drawn from alike


@dataclass(frozen=True)
class Plan:
    """What a rate takes.

    Attributes:
        rate: images a second, of all replicas together.
        limit: of the 99th percentile of latency, in seconds.
        held: images a second that one replica holds within the limit.
        replicas: so many that they hold the rate when one is dead, and when each has 10 % more.
        cores: that each was measured on, and is to request.
        usual: what one replica does when all are there.
        one_dead: what it does when one is not.
    """

    rate: float
    limit: float
    held: float
    replicas: int
    cores: float
    usual: Outcome
    one_dead: Outcome

    @property
    def utilisation(self) -> int:
        """The autoscaler's target: per cent of the CPU request."""
        return math.floor(100 * self.usual.busy)

    def __str__(self) -> str:
        return "\n".join(f"{name:15}{text}" for name, text in self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield "one replica", f"{self.held:.1f} images/s with p99 within {1e3 * self.limit:g} ms"
        yield "replicas", f"{self.replicas} for {self.rate:g} images/s, of which one may die"
        together = self.replicas * self.cores
        yield "CPU request", f"{self.cores:g} cores each, {together:g} together"
        in_flight = f"{self.usual.in_flight:.1f} requests in flight each"
        yield "autoscaler", f"target {self.utilisation} % CPU utilisation, or {in_flight}"
        yield "expected", _expected(self.usual, self.rate / self.replicas)
        yield "with one dead", _expected(self.one_dead, self.rate / (self.replicas - 1))


def _expected(found: Outcome, rate: float) -> str:
    p50, p99 = (f"p{q:g} {1e3 * found.percentile(q):.1f} ms" for q in (50, TAIL))
    return f"{rate:.1f} images/s each: {p50}, {p99}, {found.batch:.1f} images in a batch"


def plan(report: Report, batching: Batching | None, rate: float, limit: float) -> Plan:
    """Find how many replicas a rate takes; some ten seconds.

    Args:
        report: of one replica, as above.
        batching: that it was served with; None for none.
        rate: of requests of one image each, a second, as from many users.
        limit: of the 99th percentile of latency, in seconds.

    Raises:
        TFSError: the report lacks a measurement, or no rate is within the limit.
    """
    cores = _cores(report)
    batching = _with_threads(batching, cores)
    service = service_of(report, batching, cores)
    held = _held(service, batching, limit)
    replicas = max(math.ceil(rate / held) + 1, math.ceil(rate / held * TOLERANCE))
    usual, one_dead = (
        simulate(Poisson(rate / count), service, batching, REQUESTS, SEED)
        for count in (replicas, replicas - 1)
    )
    return Plan(rate, limit, held, replicas, cores, usual, one_dead)


def _cores(report: Report) -> float:
    """As `machine.describe` writes them: "2 of 4, load before 0.1"."""
    try:
        return float(report.machine["cores"].split()[0])
    except (KeyError, IndexError, ValueError) as error:
        raise TFSError("the report does not say how many cores were measured") from error


def _with_threads(batching: Batching | None, cores: float) -> Batching | None:
    if batching and not batching.num_batch_threads:
        return replace(batching, num_batch_threads=math.ceil(cores))
    return batching


def _held(service: Service, batching: Batching | None, limit: float) -> float:
    """The largest rate with p99 within the limit and nothing rejected, by bisection."""

    def within(rate: float) -> bool:
        found = simulate(Poisson(rate), service, batching, REQUESTS, SEED)
        return not found.rejected and found.percentile(TAIL) <= limit

    high = max(size / service.seconds[size] / service.demand[size] for size in service.seconds)
    low = LOWEST * high
    if not within(low):
        least = simulate(Poisson(low), service, batching, REQUESTS, SEED).percentile(TAIL)
        raise TFSError(
            f"no rate has its p99 within {1e3 * limit:g} ms: it is {1e3 * least:.1f} ms also when "
            "there is next to nothing to do"
        )
    while high - low > PRECISION * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if within(middle) else (low, middle)
    return low


# --- is it to be believed? ---


class Check(NamedTuple):
    """A percentile of a load that the report has, too.

    Attributes:
        load: as in the report.
        q: which percentile.
        predicted: in seconds.
        measured: in seconds.
    """

    load: str
    q: float
    predicted: float
    measured: float

    def __str__(self) -> str:
        ratio = self.predicted / self.measured
        values = f"{1e3 * self.predicted:.1f} ms predicted, {1e3 * self.measured:.1f} ms measured"
        return f"{self.load:>15}  p{self.q:g} {values}: {ratio:.2f}"


def checks(report: Report, batching: Batching | None) -> Iterator[Check]:
    """Predict the Poisson loads of one image a request that the report has.

    The very moments that were sent at are simulated: a tail depends on the few times at which many
    came at once, and in minutes there are too few of these for it to be that of another minute.

    Raises:
        TFSError: as `plan`.
    """
    cores = _cores(report)
    batching = _with_threads(batching, cores)
    service = service_of(report, batching, cores)
    for found in (each for row in report.measurements for each in row):
        load = Poisson(found.amount or 0.0)
        if found.closed or found.batch != 1 or found.load != str(load):
            continue
        # The warm-up was as long as a window.
        requests = math.ceil(found.whole.sent * (1 + 1 / len(found.windows)))
        outcome = simulate(load, service, batching, requests, found.seed)
        for q in (50.0, TAIL):
            measured = found.whole.percentile(q)
            if measured is not None:
                yield Check(found.load, q, outcome.percentile(q), measured)


# --- what the report says of computing ---


def service_of(report: Report, batching: Batching | None, cores: float) -> Service:
    """What computing costs.

    A batch takes s(n) alone, as measured, and is an amount of work W(n) for all cores together. It
    has a fixed part a, which is the s(0) of a line through the first and the last size, and which
    is the work of one core:

        W(n) = a / cores + n × c

    c: of an image, so that W(last) is what one of several takes when all send the largest batches.

    Raises:
        TFSError: the report lacks a measurement, or is of a server with other batching.
    """
    first, last = (batching.padded(1), batching.largest) if batching else (1, 1)
    alone, several = _measured(report, batching, first, last)
    beside = {size: _beside(found, report) for size, found in alone.items()}
    seconds = {
        size: _median(found) - _wait(size, batching) - beside[size] for size, found in alone.items()
    }
    if min(seconds.values()) <= 0:
        raise TFSError(
            "the report's requests take less time than batches wait to be filled: it is of a "
            "server with another batching file"
        )
    slope = (seconds[last] - seconds[first]) / max(1, last - first)
    fixed = max(0.0, seconds[first] - slope * first) / cores if last > first else 0.0
    # Alone, a batch has no more than all cores, and no less than one.
    most = min(seconds[last], _median(several) / (several.amount or 1.0) - beside[last])
    image = (most - fixed) / last
    shares = {size: (fixed + size * image) / took for size, took in seconds.items()}
    demand = {size: min(1.0, max(1 / cores, share)) for size, share in shares.items()}
    return Service(seconds, demand, _spread(alone[first], seconds[first]), beside[first])


def _beside(found: Measurement, report: Report) -> float:
    """Seconds of a request before and after its batch: on the way, and in the server's hands.

    Without the server's metrics it is what the sender computes for it.
    """
    for (first, *_), side in zip(report.measurements, report.server_side, strict=False):
        if (first.load, first.batch) == (found.load, found.batch) and "runtime_ms" in side:
            mean = float(found.whole.latency.get_mean_value()) / 1e6
            return max(0.0, mean - side["runtime_ms"] / 1e3)
    return found.processor * _median(found)


def _measured(
    report: Report, batching: Batching | None, first: int, last: int
) -> tuple[dict[int, Measurement], Measurement]:
    """One caller's, by images in a request, and the most callers' with the largest requests."""
    closed = [together(row) for row in report.measurements if row[0].closed]
    alone = {
        each.batch: each
        for each in sorted(closed, key=lambda each: each.batch)
        if each.amount == 1 and each.batch <= last and _is_run(each.batch, batching)
    }
    busy = _callers_that_keep_all_busy(batching)
    several = [each for each in closed if each.batch == last and (each.amount or 0) >= busy]
    if not {first, last} <= alone.keys() or not several:
        raise TFSError(
            f"the report lacks one caller with requests of {first} and of {last}, or {busy} with "
            f"requests of {last}: measure with `{command(batching)}`"
        )
    chosen = max(several, key=lambda each: each.amount or 0)
    for each in (*alone.values(), chosen):
        if each.invalid:
            raise TFSError(f"{each.load} × {each.batch} is INVALID: {each.invalid}")
    return alone, chosen


def command(batching: Batching | None) -> str:
    """What measures all that a plan needs."""
    sizes = (batching.allowed_batch_sizes or (1, batching.largest)) if batching else (1,)
    busy = _callers_that_keep_all_busy(batching)
    each = ",".join(str(n) for n in sizes if not batching or n <= batching.largest)
    return f"tfs bench --concurrency 1,{busy} --batch {each} --output FOLDER"


def _callers_that_keep_all_busy(batching: Batching | None) -> int:
    """One may leave cores idle, and so may fewer batches than are run at a time."""
    return max(2, batching.num_batch_threads) if batching else 2


def _is_run(size: int, batching: Batching | None) -> bool:
    """Whether batches of a size are run as they are, not padded."""
    return not batching or batching.padded(size) == size


def _wait(size: int, batching: Batching | None) -> float:
    """How long a lone request waits in the queue for others."""
    if not batching or not batching.batch_timeout_micros or size == batching.largest:
        return 0.0
    return batching.batch_timeout_micros / 1e6 + POLL_SECONDS / 2


def _median(found: Measurement) -> float:
    median = found.whole.percentile(50)
    if median is None:
        raise TFSError(
            f"too few requests of {found.load} × {found.batch} for a median: measure with longer "
            "windows (--seconds)"
        )
    return median


def _spread(found: Measurement, median: float) -> list[float]:
    """What the time of a batch is multiplied by, at even steps of probability."""
    latency = found.whole.latency
    less = _median(found) - median
    return [(latency.get_value_at_percentile(q) / 1e6 - less) / median for q in QUANTILES]
