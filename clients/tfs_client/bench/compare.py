"""Two reports -> ratios with confidence intervals, and whether the second is a regression.

    tfs bench compare before/ after/

Windows are drawn again and again with replacement (the bootstrap; Efron and Tibshirani, 1993), and
their histograms merged, so that a percentile has an interval too. What is worse by more than the
tolerance, with 95 % confidence, is a regression. A load of a single window has no interval, and is
none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tfs_client._errors import TFSError
from tfs_client._tensors import Array
from tfs_client.bench.intervals import CONFIDENCE, newcombe
from tfs_client.bench.measure import Measurement, together
from tfs_client.bench.report import Report
from tfs_client.bench.windows import SAMPLES_BEYOND, Window

DRAWS = 2000
TOLERANCE = 0.05
PERCENTILES = (50.0, 90.0, 99.0)
HEADER = f"{'load':>16}  {'':>8} {'before':>9} {'after':>9}  ratio ({CONFIDENCE:g} % interval)"


@dataclass(frozen=True)
class Change:
    """One figure of one load, before and after.

    Attributes:
        load: as in the reports.
        name: of the figure.
        before: its value; images a second, or milliseconds.
        after: the same.
        low: of the interval of after ÷ before.
        high: the same.
        more_is_better: of images a second.
    """

    load: str
    name: str
    before: float
    after: float
    low: float
    high: float
    more_is_better: bool = False

    def is_regression(self, tolerance: float) -> bool:
        """Whether it is worse by more than that, and not by chance."""
        if self.more_is_better:
            return self.high < 1 - tolerance
        return self.low > 1 + tolerance

    def row(self, tolerance: float) -> str:
        """One line of the table."""
        word = "  REGRESSION" if self.is_regression(tolerance) else ""
        return (
            f"{self.load:>16}  {self.name:>8} {self.before:9.1f} {self.after:9.1f}  "
            f"{self.after / self.before:.3f} ({self.low:.3f} to {self.high:.3f}){word}"
        )


def changes(before: Report, after: Report, seed: int = 0) -> Iterator[Change]:
    """Each figure that both reports have.

    Raises:
        TFSError: they have no load in common, or one that is to be compared is INVALID.
    """
    chance = np.random.default_rng(seed)
    theirs = {_key(row): row for row in after.measurements}
    both = [(row, theirs[_key(row)]) for row in before.measurements if _key(row) in theirs]
    if not both:
        raise TFSError("the reports have no load in common: measure both with the same options")
    for pair in both:
        a, b = (together(repeats) for repeats in pair)
        # An INVALID repeat counts also where all together would pass, as in the report's table.
        for name, found in (("first", [*pair[0], a]), ("second", [*pair[1], b])):
            for each in found:
                if each.invalid:
                    raise TFSError(f"{each.load} of the {name} report is INVALID: {each.invalid}")
        yield from _of_load(a, b, chance)


def _key(row: Sequence[Measurement]) -> tuple[str, int]:
    return row[0].load, row[0].batch


def _of_load(a: Measurement, b: Measurement, chance: np.random.Generator) -> Iterator[Change]:
    drawn = [_Drawn(each.windows, chance) for each in (a, b)]
    single = min(len(a.windows), len(b.windows)) == 1  # of which nothing can be drawn

    def interval_of(ratios: Array) -> tuple[float, float]:
        return (0.0, math.inf) if single else interval(ratios)

    name = a.load if a.batch == 1 else f"{a.load} × {a.batch}"
    rates = [each.whole.images_per_second for each in (a, b)]
    if rates[0] > 0:
        low, high = interval_of(drawn[1].rates / drawn[0].rates)
        yield Change(name, "images/s", rates[0], rates[1], low, high, more_is_better=True)
    for q in PERCENTILES:
        values = [each.whole.percentile(q) for each in (a, b)]
        if values[0] is not None and values[1] is not None:
            low, high = interval_of(drawn[1].percentile(q) / drawn[0].percentile(q))
            yield Change(name, f"p{q:g} ms", 1e3 * values[0], 1e3 * values[1], low, high)


def interval(ratios: Array) -> tuple[float, float]:
    """What all but the outermost of the drawn ones lie in."""
    tail = (100 - CONFIDENCE) / 2
    low, high = np.nanpercentile(ratios, (tail, 100 - tail))
    return float(low), float(high)


class _Drawn:
    """Windows drawn with replacement, `DRAWS` times."""

    def __init__(self, windows: Sequence[Window], chance: np.random.Generator) -> None:
        count = len(windows)
        weights = chance.multinomial(count, [1 / count] * count, DRAWS)
        seconds = weights @ np.array([window.seconds for window in windows])
        self.rates = weights @ np.array([window.completed for window in windows]) / seconds
        self._values, counts = _buckets(windows)
        self._below = np.cumsum(weights @ counts, axis=1)

    def percentile(self, q: float) -> Array:
        """Of each draw, in microseconds; NaN where too few requests lie beyond it."""
        total = self._below[:, -1]
        at = np.argmax(self._below >= q / 100 * total[:, None], axis=1)
        enough = total * (100 - q) / 100 >= SAMPLES_BEYOND - 1
        return np.where(enough, self._values[at], np.nan)


def _buckets(windows: Sequence[Window]) -> tuple[Array, Array]:
    """Values that any of the windows has, and how often each window has each."""
    found = [
        {item.value_iterated_to: item.count_at_value_iterated_to for item in recorded}
        for recorded in (window.latency.get_recorded_iterator() for window in windows)
    ]
    values = sorted({value for counts in found for value in counts})
    counts = [[each.get(value, 0) for value in values] for each in found]
    return np.array(values, float), np.array(counts, float)


def new_failures(before: Report, after: Report) -> int:
    """Requests that failed or were answered wrongly in the second report, if more than before.

    That is, if none was before, or a larger share is, by its interval.
    """
    shares = []
    for report in (before, after):
        every = [each for row in report.measurements for each in row]
        sent = sum(window.sent for each in every for window in each.windows)
        shares.append((sum(each.bad for each in every), sent))
    (bad_before, _), (bad, _) = shares
    more = bad and (not bad_before or newcombe(*shares)[0] > 0)
    return bad if more else 0
