"""MLPerf Inference's scenarios (Reddi et al., 2020, section 4), against a server over the network.

SingleStream: one caller; its figure is the 90th percentile of latency. Offline: more callers than
any batch holds; images a second. Server: Poisson arrivals; the largest rate of which the 99th
percentile stays within a limit, found by bisection and then verified with other moments.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tfs_client.bench.loads import Closed, Load, Poisson
from tfs_client.bench.measure import MOST_WINDOWS, Measurement, Senders
from tfs_client.bench.report import Scenario

NAMES = ("single-stream", "server", "offline")
OFFLINE_CALLERS = 64
TAIL = 99.0
SAMPLES = 600  # requests that a rate is judged by, at least
STEPS = 5  # of the bisection, which begins with a span of 1 : 8
VERIFICATIONS = 2
BACK_OFF = 0.95  # of a rate that does not hold when it is verified
LOWEST_SHARE = 1 / 8  # of the Offline rate

Measure = Callable[[Load, int, int], Measurement]
"""A load, the least number of windows and a seed -> what came of it."""


def measuring(senders: Senders, window: float, tell: Callable[[Measurement], None]) -> Measure:
    """What the scenarios measure with; each measurement is told as it is made."""

    def measure(load: Load, least: int, seed: int) -> Measurement:
        most = max(least, MOST_WINDOWS)
        found = senders.measure(load, window, least=least, most=most, seed=seed)
        tell(found)
        return found

    return measure


def single_stream(measure: Measure, seed: int) -> Scenario:
    """The 90th percentile of one caller's requests, in seconds."""
    found = measure(Closed(1), 3, seed)
    latency = found.whole.percentile(90)
    if latency is None:
        return Scenario("SingleStream", 0.0, "too few requests for a p90", valid=False)
    return Scenario("SingleStream", latency, f"p90 {1e3 * latency:.1f} ms", _holds(found))


def offline(measure: Measure, seed: int) -> Scenario:
    """Images a second with as many requests under way as the server can merge."""
    found = measure(Closed(OFFLINE_CALLERS), 3, seed)
    rate = found.whole.images_per_second
    return Scenario("Offline", rate, f"{rate:.1f} images/s", _holds(found))


def server(
    measure: Measure, window: float, limit: float, highest: float, batch: int, seed: int
) -> Scenario:
    """The largest Poisson rate, in requests a second, with p99 within the limit.

    Args:
        measure: see `measuring`.
        window: seconds of each.
        limit: of the 99th percentile, in seconds.
        highest: images a second that the server reaches at all.
        batch: images in a request.
        seed: of the moments.
    """
    if not highest:
        return Scenario("Server", 0.0, "no rate, as nothing was answered", False)
    valid = True

    def within(rate: float, seed: int) -> bool:
        nonlocal valid
        found = measure(Poisson(rate), max(3, math.ceil(SAMPLES / rate / window)), seed)
        valid = valid and not found.invalid
        tail = found.whole.percentile(TAIL)
        return _holds(found) and tail is not None and tail <= limit

    high = highest / batch
    low = LOWEST_SHARE * high
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if within(middle, seed) else (low, middle)
    rate = low
    while rate >= LOWEST_SHARE * highest / batch:
        if all(within(rate, seed + turn) for turn in range(1, VERIFICATIONS + 1)):
            text = f"{rate:.1f} requests/s with p99 within {1e3 * limit:g} ms"
            return Scenario("Server", rate, text, valid)
        rate *= BACK_OFF
    text = f"no rate from {rate:.1f} requests/s on has its p99 within {1e3 * limit:g} ms"
    return Scenario("Server", 0.0, text, valid)


def _holds(found: Measurement) -> bool:
    return not found.invalid and not found.bad
