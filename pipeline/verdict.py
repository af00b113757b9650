"""What the gate asks of an export, and what it found: the verdict, in JSON and as a table."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline import files
from pipeline.errors import PipelineError

NO_STABLE = "no stable version yet"


@dataclass(frozen=True)
class Thresholds:
    """What an export must hold; set by people, validated when made.

    Attributes:
        floor: least accuracy, 0 to 1; None is half of the way from chance to perfect.
        margin: accuracy that it may lose against the stable version, 0 to 1.
        latency_ratio: most that an image may take, as a multiple of the stable version's time.
        memory_ratio: the same of the server's peak memory.
        images: test images to measure accuracy on, at the most.
    """

    floor: float | None = None
    margin: float = 0.005
    latency_ratio: float = 1.5
    memory_ratio: float = 1.5
    images: int = 10_000

    def __post_init__(self) -> None:
        for what, low, high in (
            ("floor", 0.0, 1.0),
            ("margin", 0.0, 1.0),
            ("latency_ratio", 0.01, 1000.0),
            ("memory_ratio", 0.01, 1000.0),
            ("images", 1, 10_000_000),
        ):
            value = getattr(self, what)
            if value is not None and not low <= value <= high:
                raise PipelineError(f"{what} is {value}: choose a value from {low} to {high}")

    def floor_of(self, classes: int) -> float:
        """The floor for a number of classes."""
        return (1 + 1 / classes) / 2 if self.floor is None else self.floor


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        check: its name.
        passed: whether it speaks for the export, or at least not against it.
        measured: a number where there is one; None where nothing was measured.
        limit: what `measured` was held against.
        detail: what was found; the reason where it did not pass.
    """

    check: str
    passed: bool
    measured: float | str | None = None
    limit: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """What was found of one export.

    Attributes:
        checks: in the order in which they were made; the first that makes others pointless is last.
        manifest_sha256: of the export's manifest.json, which has the sums of all other files.
        baseline: the stable version's number; None if there is none.
        baseline_sha256: of its manifest.json: other repositories have other versions of a number.
        server: the command that served it.
        validated: when, UTC.
    """

    checks: tuple[Check, ...]
    manifest_sha256: str
    baseline: int | None
    baseline_sha256: str | None
    server: str
    validated: str = field(
        default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    )

    @property
    def blessed(self) -> bool:
        return not self.reasons

    @property
    def reasons(self) -> list[str]:
        """Why it is refused, a line for each check that did not pass."""
        return [f"{check.check}: {check.detail}" for check in self.checks if not check.passed]

    def write(self, path: Path) -> None:
        """Leave it as JSON."""
        own = {"blessed": self.blessed, "reasons": self.reasons}
        files.write_json(path, own | asdict(self))

    def table(self) -> str:
        """A line per check."""
        rows = [("check", "measured", "limit", "", "")] + [
            (c.check, _text(c.measured), c.limit, "ok" if c.passed else "REFUSED", c.detail)
            for c in self.checks
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
        return "\n".join(
            "  ".join([*map(str.ljust, row, widths), row[-1]]).rstrip() for row in rows
        )


def _text(measured: float | str | None) -> str:
    if measured is None:
        return "not measured"
    return measured if isinstance(measured, str) else f"{measured:.4g}"
