"""Intervals of shares, which hold for few cases and for none, and how many would be enough."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

CONFIDENCE = 95.0  # per cent
LONGEST = 1e4  # times as many cases: not worth waiting for
_STEP = 1.02
_Z = NormalDist().inv_cdf((1 + CONFIDENCE / 100) / 2)

Share = tuple[float, float]
"""How many of how many."""


def wilson(share: Share) -> tuple[float, float]:
    """Of a share (Wilson, 1927)."""
    cases, count = share
    middle = (cases + _Z**2 / 2) / (count + _Z**2)
    half = _Z / (count + _Z**2) * math.sqrt(cases * (count - cases) / count + _Z**2 / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def newcombe(first: Share, second: Share) -> tuple[float, float]:
    """Of the second share less the first (Newcombe, 1998, his method 10)."""
    (low, high), (low_of_second, high_of_second) = wilson(first), wilson(second)
    a, b = first[0] / first[1], second[0] / second[1]
    return (
        b - a - math.hypot(b - low_of_second, high - a),
        b - a + math.hypot(high_of_second - b, a - low),
    )


def times(decided: Callable[..., bool], *shares: Share) -> float:
    """How many times as many cases would decide, if the shares stay what they are."""
    factor = 1.0
    while factor <= LONGEST and not decided(*((x * factor, n * factor) for x, n in shares)):
        factor *= _STEP
    return factor
