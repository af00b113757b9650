"""Measurements -> a table, JSON, CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tfs_client._errors import TFSError
from tfs_client.bench.measure import Measurement, together

FORMAT = 1
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
HEADER = (
    f"{'load':>16}  images/s  (lowest to highest)   p50 ms   p90 ms   p99 ms p99.9 ms"
    "  wrong failed  sender ms"
)
LOAD_COLUMNS = ("load", "batch", "repeats", "seconds", "images_per_s", "lowest", "highest")
FOUND_COLUMNS = (
    "sent", "wrong", "failed", "sender_late_ms", "sender_processor", "stolen", "verdict",
)  # fmt: skip


@dataclass
class Scenario:
    """One of MLPerf's, as measured.

    Attributes:
        name: SingleStream, Server or Offline.
        value: its figure: seconds, requests a second, images a second.
        text: the figure in words.
        valid: whether all measurements it rests on are.
    """

    name: str
    value: float
    text: str
    valid: bool

    def __str__(self) -> str:
        doubt = "" if self.valid else " (not valid: requests failed, or the sender was the limit)"
        return f"{self.name}: {self.text}{doubt}"


@dataclass
class Report:
    """Everything that was measured, and what it takes to repeat it.

    Attributes:
        machine: see `machine.describe`.
        server: its address, model and version.
        settings: payload, batch sizes, seconds of a window, repeats, senders, seed.
        measurements: of each load in turn, its repeats.
        server_side: what the server's metrics say of each load; empty where they were not read.
        scenarios: where they were asked for.
    """

    machine: dict[str, str]
    server: dict[str, Any]
    settings: dict[str, Any]
    measurements: list[list[Measurement]] = field(default_factory=list)
    server_side: list[dict[str, float]] = field(default_factory=list)
    scenarios: list[Scenario] = field(default_factory=list)

    def remarks(self) -> Iterator[str]:
        """What its reader should know of a load beyond its figures, a line each."""
        for row in self.measurements:
            whole = together(row)
            if whole.remark:
                yield f"{whole.load}: {whole.remark}"

    def to_json(self) -> str:
        """As a file has it."""
        found = {
            "format": FORMAT,
            "machine": self.machine,
            "server": self.server,
            "settings": self.settings,
            "measurements": [[each.to_json() for each in row] for row in self.measurements],
            "server_side": self.server_side,
            "scenarios": [asdict(scenario) for scenario in self.scenarios],
        }
        return json.dumps(found, indent=1) + "\n"

    @classmethod
    def of_file(cls, path: str | Path) -> Report:
        """What was written by `tfs bench --output`: report.json, or the folder that has it.

        Raises:
            TFSError: it cannot be read, or is no report.
        """
        path = Path(path)
        path = path / "report.json" if path.is_dir() else path
        try:
            found = json.loads(path.read_text())
            if found["format"] != FORMAT:
                raise TFSError(f"{path}: is of format {found['format']}, and {FORMAT} is read here")
            return cls(
                found["machine"],
                found["server"],
                found["settings"],
                [[Measurement.from_json(each) for each in row] for row in found["measurements"]],
                found["server_side"],
                [Scenario(**scenario) for scenario in found["scenarios"]],
            )
        except OSError as error:
            raise TFSError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise TFSError(f"{path}: is no report of `tfs bench --output`: {error!r}") from error


def row(repeats: Sequence[Measurement]) -> str:
    """One line of the table; a percentile is withheld where too few requests lie beyond it."""
    all_of_it = together(repeats)
    whole = all_of_it.whole
    rates = [each.whole.images_per_second for each in repeats]
    spread = f"({min(rates):.1f} to {max(rates):.1f})" if len(rates) > 1 else ""
    latencies = " ".join(f"{_millis(whole.percentile(q)):>8}" for q in PERCENTILES)
    load = all_of_it.load if all_of_it.batch == 1 else f"{all_of_it.load} × {all_of_it.batch}"
    line = (
        f"{load:>16} {whole.images_per_second:9.1f}  {spread:20} {latencies} "
        f"{whole.wrong:6} {whole.errors.total():6} {1e3 * all_of_it.lag:10.1f}"
    )
    said = [_verdict(repeats, all_of_it), all_of_it.remark, *list(whole.errors)[:1]]
    return "  ".join([line, *filter(None, said)])


def _verdict(repeats: Sequence[Measurement], all_of_it: Measurement) -> str:
    """An INVALID repeat's, also where all together would pass; otherwise all together's."""
    return next((each for each in repeats if each.invalid), all_of_it).verdict


def _millis(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.1f}"


def rows_of_csv(report: Report) -> str:
    """A line for each load, for a spreadsheet."""
    text = io.StringIO()
    names = [f"p{q:g}_ms" for q in PERCENTILES]
    side = sorted({name for found in report.server_side for name in found})
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*LOAD_COLUMNS, *names, *FOUND_COLUMNS, *side])
    for position, repeats in enumerate(report.measurements):
        writer.writerow(_cells(repeats, report.server_side[position : position + 1], side))
    return text.getvalue()


def _cells(
    repeats: Sequence[Measurement], found: Sequence[dict[str, float]], side: Sequence[str]
) -> Iterator[Any]:
    all_of_it = together(repeats)
    whole = all_of_it.whole
    rates = [each.whole.images_per_second for each in repeats]
    yield from (all_of_it.load, all_of_it.batch, len(repeats), f"{whole.seconds:g}")
    yield from (f"{rate:.2f}" for rate in (whole.images_per_second, min(rates), max(rates)))
    for q in PERCENTILES:
        latency = whole.percentile(q)
        yield "" if latency is None else f"{1e3 * latency:.3f}"
    yield from (whole.sent, whole.wrong, whole.errors.total(), f"{1e3 * all_of_it.lag:.2f}")
    yield from (f"{all_of_it.processor:.2f}", f"{all_of_it.stolen:.2f}")
    yield _verdict(repeats, all_of_it)
    metrics = found[0] if found else {}
    yield from (f"{metrics[name]:.3f}" if name in metrics else "" for name in side)
