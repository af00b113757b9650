"""Measurements -> a table."""

from __future__ import annotations

import numpy as np

from tfs_client.bench.closed_loop import Result

HEADER = "callers  images/s   p50 ms   p90 ms   p99 ms  wrong failed"
MIN_SAMPLES_P99 = 500  # fewer would rest the figure on less than five calls


def row(result: Result) -> str:
    """One line of the table; a percentile is withheld where too few calls were measured."""
    latencies = np.array(result.latencies) * 1000
    count = len(latencies)
    p50, p90 = (f"{np.percentile(latencies, q):.1f}" if count >= 50 else "-" for q in (50, 90))
    p99 = f"{np.percentile(latencies, 99):.1f}" if count >= MIN_SAMPLES_P99 else "-"
    line = (
        f"{result.callers:7} {count / result.seconds:9.1f} {p50:>8} {p90:>8} {p99:>8} "
        f"{result.wrong:6} {result.errors.total():6}"
    )
    return f"{line}  {next(iter(result.errors))}" if result.errors else line
