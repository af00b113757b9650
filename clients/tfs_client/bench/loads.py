"""Loads: when requests are to be sent.

A closed load has callers that wait for their answers, and so sends less while the server stalls.
All others are open: requests are meant to be sent at moments set beforehand, whether or not earlier
ones are answered (Schroeder et al., "Open Versus Closed: A Cautionary Tale", NSDI 2006).
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tfs_client._errors import TFSError


@dataclass(frozen=True)
class Closed:
    """So many callers, each of which sends its next request when its last is answered."""

    callers: int

    def __str__(self) -> str:
        return f"{self.callers} caller{'s' if self.callers > 1 else ''}"


@dataclass(frozen=True)
class Poisson:
    """Requests a second on average, as from many users who do not know of each other."""

    rate: float

    def __str__(self) -> str:
        return f"{self.rate:.4g}/s"

    def moments(self, seed: int) -> Iterator[float]:
        """In seconds from the start, without end."""
        chance = random.Random(seed)
        return itertools.accumulate(chance.expovariate(self.rate) for _ in itertools.count())


@dataclass(frozen=True)
class Constant:
    """Requests a second, evenly spaced."""

    rate: float

    def __str__(self) -> str:
        return f"{self.rate:.4g}/s even"

    def moments(self, _: int) -> Iterator[float]:
        """In seconds from the start, without end."""
        return (position / self.rate for position in itertools.count(1))


@dataclass(frozen=True)
class Burst:
    """So many requests at once, every so many seconds."""

    size: int
    every: float

    def __str__(self) -> str:
        return f"{self.size} each {self.every:g} s"

    def moments(self, _: int) -> Iterator[float]:
        """In seconds from the start, without end."""
        return (turn * self.every for turn in itertools.count() for _ in range(self.size))


@dataclass(frozen=True)
class Steps:
    """Poisson arrivals whose rate changes: (requests a second, for how many seconds) in turn."""

    steps: tuple[tuple[float, float], ...]

    def __str__(self) -> str:
        return ",".join(f"{rate:g}:{seconds:g}" for rate, seconds in self.steps)

    @property
    def seconds(self) -> float:
        """The length of all of it."""
        return sum(seconds for _, seconds in self.steps)

    def moments(self, seed: int) -> Iterator[float]:
        """In seconds from the start, to the end of the last step."""
        start = 0.0
        for position, (rate, seconds) in enumerate(self.steps):
            for at in Poisson(rate).moments(seed + position):
                if at >= seconds:
                    break
                yield start + at
            start += seconds


@dataclass(frozen=True)
class Replay:
    """Requests at recorded moments, in seconds from the first."""

    recorded: tuple[float, ...]

    def __str__(self) -> str:
        return f"replay of {len(self.recorded)}"

    @classmethod
    def of_file(cls, path: str) -> Replay:
        """A file with a timestamp in seconds on each line, such as a server's log has.

        Raises:
            TFSError: it cannot be read, or a line is no number; with its number.
        """
        try:
            lines = Path(path).read_text().split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise TFSError(f"{path}: cannot be read: {error}") from error
        moments = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                moments.append(float(line))
            except ValueError:
                moments.append(math.nan)
            if not math.isfinite(moments[-1]):
                raise TFSError(f"{path}, line {number}: {line.strip()!r} is no time in seconds")
        if not moments:
            raise TFSError(f"{path}: has no timestamps")
        moments.sort()
        return cls(tuple(moment - moments[0] for moment in moments))

    @property
    def seconds(self) -> float:
        """To just after the last request."""
        return self.recorded[-1] + 1e-3

    def moments(self, _: int) -> Iterator[float]:
        """In seconds from the start."""
        return iter(self.recorded)


Open = Poisson | Constant | Burst | Steps | Replay
Load = Closed | Open
ARRIVALS: dict[str, type[Poisson] | type[Constant]] = {"poisson": Poisson, "constant": Constant}
