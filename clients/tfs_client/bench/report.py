"""Measurements -> a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tfs_client.bench import closed_loop, open_loop

_COLUMNS = "images/s   p50 ms   p90 ms   p99 ms  wrong failed"
CLOSED_HEADER = f"callers  {_COLUMNS}"
OPEN_HEADER = f"   rate  {_COLUMNS}  sender late ms"
MIN_SAMPLES_P99 = 500  # fewer would rest the figure on less than five calls


def closed_row(result: closed_loop.Result) -> str:
    """One line of the table; a percentile is withheld where too few calls were measured."""
    row = _row(result.latencies, result.seconds, result.wrong, result.errors)
    return f"{result.callers:7} {row}{_first(result.errors)}"


def open_row(result: open_loop.Result) -> str:
    """The same, with how late the sender was; INVALID where that is what was measured."""
    row = _row(result.latencies, result.seconds, result.wrong, result.errors)
    verdict = "" if result.valid else "  INVALID: the sender was the limit"
    return f"{result.rate:7g} {row} {1e3 * result.lag:15.1f}{verdict}{_first(result.errors)}"


def _row(seconds: Sequence[float], time: float, wrong: int, errors: Counter[str]) -> str:
    latencies = np.array(seconds) * 1000
    count = len(latencies)
    p50, p90 = (f"{np.percentile(latencies, q):.1f}" if count >= 50 else "-" for q in (50, 90))
    p99 = f"{np.percentile(latencies, 99):.1f}" if count >= MIN_SAMPLES_P99 else "-"
    return f"{count / time:9.1f} {p50:>8} {p90:>8} {p99:>8} {wrong:6} {errors.total():6}"


def _first(errors: Counter[str]) -> str:
    return f"  {next(iter(errors))}" if errors else ""
