"""What senders record in a stretch of time: counts, and histograms that merge.

Percentiles come from merged histograms and are never averaged. The histograms are HdrHistogram's:
three significant digits, from a microsecond to an hour.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hdrh.histogram import HdrHistogram

HIGHEST_MICROS = 3600 * 1_000_000
DIGITS = 3
SAMPLES_BEYOND = 5  # a percentile that fewer requests lie beyond is withheld


def histogram() -> HdrHistogram:
    """An empty one, of microseconds."""
    return HdrHistogram(1, HIGHEST_MICROS, DIGITS)


def record(into: HdrHistogram, seconds: float) -> None:
    """Take note of a time."""
    into.record_value(min(max(1, round(seconds * 1e6)), HIGHEST_MICROS))


@dataclass
class Window:
    """One stretch of time, as one sender or all of them saw it.

    Attributes:
        seconds: its length.
        completed: images that were answered within it.
        sent: requests that were meant to be sent within it.
        wrong: of these, the ones whose answer was not the expected one.
        errors: of these, how many failed, by what they said.
        latency: of those that were answered, from when they were meant to be sent.
        lag: how late the sender itself was.
    """

    seconds: float
    completed: int = 0
    sent: int = 0
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latency: HdrHistogram = field(default_factory=histogram)
    lag: HdrHistogram = field(default_factory=histogram)

    @property
    def images_per_second(self) -> float:
        """How many were answered."""
        return self.completed / self.seconds

    def percentile(self, q: float) -> float | None:
        """Latency in seconds that `q` % of the requests did not exceed; None for too few."""
        return percentile(self.latency, q)

    def merge(self, other: Window) -> None:
        """Add what another sender saw in the same time."""
        self.completed += other.completed
        self.sent += other.sent
        self.wrong += other.wrong
        self.errors += other.errors
        self.latency.add(other.latency)
        self.lag.add(other.lag)

    def to_json(self) -> dict[str, Any]:
        """As JSON has it; histograms in HdrHistogram's own encoding."""
        return {
            "seconds": self.seconds,
            "completed": self.completed,
            "sent": self.sent,
            "wrong": self.wrong,
            "errors": dict(self.errors),
            "latency_micros": self.latency.encode().decode(),
            "lag_micros": self.lag.encode().decode(),
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Window:
        """The opposite."""
        return cls(
            found["seconds"],
            found["completed"],
            found["sent"],
            found["wrong"],
            Counter(found["errors"]),
            HdrHistogram.decode(found["latency_micros"]),
            HdrHistogram.decode(found["lag_micros"]),
        )


def percentile(of: HdrHistogram, q: float) -> float | None:
    """In seconds; None where too few values lie beyond it."""
    if of.total_count * (100 - q) / 100 < SAMPLES_BEYOND - 1e-9:
        return None
    return float(of.get_value_at_percentile(q)) / 1e6


def one_after_another(windows: Iterable[Window]) -> Window:
    """All of them as one."""
    whole = Window(0.0)
    for window in windows:
        whole.merge(window)
        whole.seconds += window.seconds
    return whole
