"""What the `tfs` command's options may be."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from tfs_client._options import MAX_SECONDS


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and to {MAX_SECONDS}")
    return value


def share(text: str) -> float:
    """A number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value


def count(text: str) -> int:
    """A whole number from 1."""
    try:
        found = int(text)
    except ValueError:
        found = 0
    if found < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return found


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers from 1."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = (0,)
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers from 1")
    return found


def rates(text: str) -> tuple[float, ...]:
    """Numbers above 0."""
    return tuple(positive(part) for part in text.split(","))


def pairs(meaning: str) -> Callable[[str], tuple[tuple[float, float], ...]]:
    """Numbers above 0 with colons between, such as 50:10,200:5."""

    def parse(text: str) -> tuple[tuple[float, float], ...]:
        found = []
        for part in text.split(","):
            first, colon, second = part.partition(":")
            if not colon:
                raise argparse.ArgumentTypeError(f"{part!r} is not {meaning}")
            found.append((positive(first), positive(second)))
        return tuple(found)

    return parse
