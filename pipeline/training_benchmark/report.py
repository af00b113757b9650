"""What `compare` measured -> Markdown, aligned so that it reads well as plain text."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

OURS, PEER = "TensorFlow", "PyTorch"
SYNTHETIC, REAL = "synthetic", "real"
FILES = "real, from files"  # though it would fit in memory, where training keeps it
PEER_GOAL = 1.3  # times the rate of the peer's best configuration
REAL_GOAL = 0.97  # of the rate on synthetic data
START_GOAL = 30.0  # seconds
INSTALL_PEER = "PyTorch is not installed: `.venv/bin/pip install -e '.[peers]'` to measure it too."


class Row(NamedTuple):
    """What is measured at once: a configuration's name, its framework, and the data."""

    configuration: str
    framework: str
    data: str


@dataclass
class Result:
    """What was measured of one shape.

    Attributes:
        title: the shape's.
        rates: images per second of each row, by round.
        failures: name of each configuration that did not work -> why.
        versions: of libraries, by name.
    """

    title: str
    rates: dict[Row, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def best(self, framework: str) -> Row | None:
        """The framework's row with the highest median on synthetic data."""
        rows = [row for row in self.rates if (row.framework, row.data) == (framework, SYNTHETIC)]
        return max(rows, key=lambda row: statistics.median(self.rates[row]), default=None)

    def ratio(self, row: Row, to: Row) -> "Ratio":
        """How many times as fast a row is as another, by round."""
        by_round = [a / b for a, b in zip(self.rates[row], self.rates[to], strict=True)]
        return Ratio(statistics.median(by_round), min(by_round), max(by_round))


class Ratio(NamedTuple):
    """Of rates measured within one round: the median over rounds, the lowest and the highest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def write(
    described: Mapping[str, str],
    results: Sequence[Result],
    starts: Sequence[float],
    failure: str,
    rounds: int,
    seconds: float,
    peer: bool,
) -> str:
    """All of it as Markdown.

    Args:
        described: see `tfs_client.bench.machine`.
        results: of each shape.
        starts: seconds from the start of a training to the end of its first step.
        failure: why there are no more of them.
        rounds: how often each configuration had its turn.
        seconds: how long a turn was.
        peer: whether PyTorch was there to be measured.
    """
    versions = {name: text for result in results for name, text in result.versions.items()}
    lines = [
        "# Training throughput",
        "",
        "Images per second of whole training steps, measured by `make benchmark-training`: the",
        f"median, lowest and highest of {rounds} turns of {seconds:g} s, which all configurations "
        "take in rounds.",
        "Ratios are medians of the ratios within rounds. Both frameworks train the same network,",
        "PyTorch torchvision's GoogLeNet, channels last, with this project's stem and 5×5 kernels",
        "for preset `best`.",
        "",
        *(f"- {name}: {text}" for name, text in {**described, **versions}.items()),
        "",
    ]
    for result in results:
        lines += [f"## {result.title}", "", *_section(result), ""]
    if not peer:
        lines += [INSTALL_PEER, ""]
    lines += ["## Start-up", "", *_start_up(starts)]
    if failure:
        lines.append(f"Failed: {failure}")
    return "\n".join(lines) + "\n"


def _section(result: Result) -> Iterator[str]:
    ours, peer = result.best(OURS), result.best(PEER)
    table = [["configuration", "data", "images/s", "lowest", "highest", f"÷ best {PEER}"]]
    for row, rates in result.rates.items():
        numbers = (statistics.median(rates), min(rates), max(rates))
        beside = f"{result.ratio(row, peer).median:.3f}" if peer else "–"
        table.append([row.configuration, row.data, *(f"{n:,.1f}" for n in numbers), beside])
    yield from aligned(table)
    yield ""
    if ours and peer:
        ratio = result.ratio(ours, peer)
        met = _met(ratio.median >= PEER_GOAL)
        yield f"- {ours.configuration} ÷ {peer.configuration}: {ratio}; goal {PEER_GOAL}: {met}"
    for row in result.rates:
        if row.data != SYNTHETIC:
            ratio = result.ratio(row, row._replace(data=SYNTHETIC))
            compared = f"{row.configuration}, {row.data} ÷ synthetic data"
            yield f"- {compared}: {ratio}; goal {REAL_GOAL}: {_met(ratio.median >= REAL_GOAL)}"
    for name, reason in result.failures.items():
        yield f"- {name} failed and is left out: {reason}"


def _start_up(starts: Sequence[float]) -> Iterator[str]:
    if not starts:
        return
    median = statistics.median(starts)
    several = ", ".join(f"{seconds:.1f}" for seconds in starts)
    yield (
        f"`python -m pipeline train --preset best`, from the start of the process to the end of "
        f"the first step: {median:.1f} s"
    )
    yield f"({several}); goal {START_GOAL:.0f} s: {_met(median < START_GOAL)}"


def _met(goal: bool) -> str:
    return "met" if goal else "missed"


def aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table; columns from the third on are numbers, and to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rule = ["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    for cells in (table[0], rule, *table[1:]):
        padded = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        yield f"| {' | '.join(padded)} |"
