"""Servers with one setting after another -> the one that answers most within a latency limit.

    tfs tune --limit-ms 500 --output serving/config --server 'server --port={port} {flags}'

One axis of `AXES` is varied at a time, from what was best so far. All settings of an axis have
servers that take turns, since what else the machine does changes from minute to minute: twenty
minutes for each number of cores, and the memory of eight servers. A round's figure is the images a
second of the largest number of callers whose 99th percentile is within the limit. What was best is
then measured in turns with two servers that nobody tuned, which takes as long again.
"""

from __future__ import annotations

import itertools
import math
import re
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from tfs_client._client import Client
from tfs_client._errors import TFSError
from tfs_client.bench import measure, scenarios, servers
from tfs_client.bench.batching import Batching
from tfs_client.bench.loads import Closed
from tfs_client.bench.measure import Measurement, Senders
from tfs_client.bench.payloads import Payload

PORT, FLAGS = "{port}", "{flags}"
CALLERS = (1, 4, 16, 64)
LIMITS = (1, 2, 4, 8)  # cores that settings are written for
REQUEST = 32  # images that every setting takes in one; a version is warmed up with as many
TAIL = 99.0
WINDOWS = 5  # of a point, at the most
HEAD = "# How concurrent requests are merged; read by TensorFlow Serving and the embedded server.\n"
CONFIG, FLAG_FILE = "batching.config", "flags"
_INTRA_OP = re.compile(r"^--tensorflow_intra_op_parallelism=(\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Setting:
    """What is tuned.

    Attributes:
        batching: None for a server that does not merge requests.
        intra_op: threads within an operation; 0 for one per core that the server sees.
    """

    batching: Batching | None
    intra_op: int = 0

    def __str__(self) -> str:
        if self.batching is None:
            return "no batching"
        of = self.batching
        return (
            f"batches of {of.largest} within {of.batch_timeout_micros / 1e3:g} ms, "
            f"{of.num_batch_threads or 'default'} × {self.intra_op or 'default'} threads"
        )

    def flags(self, config: Path) -> list[str]:
        """TensorFlow Serving's, with the batching file in its place."""
        found = []
        if self.intra_op:
            found.append(f"--tensorflow_intra_op_parallelism={self.intra_op}")
        if self.batching is not None:
            found += ["--enable_batching", f"--batching_parameters_file={config}"]
            # Twice what all batch threads can hold: requests that wait for a batch hold a thread.
            held = self.batching.largest * max(1, self.batching.num_batch_threads)
            found.append(f"--grpc_max_threads={max(96, 2 * held)}")
        return found


def setting_of(config: Path) -> Setting:
    """A batching file, with the threads of the `flags` beside it.

    Raises:
        TFSError: as `Batching.of_file`.
    """
    batching = Batching.of_file(config)
    beside = config.with_name(FLAG_FILE)
    found = _INTRA_OP.search(beside.read_text()) if beside.exists() else None
    return Setting(batching, int(found[1]) if found else 0)


UNTUNED = {
    "no batching": Setting(None),
    "--enable_batching alone": Setting(Batching()),
}


def sized(largest: int, micros: int, threads: int) -> Batching:
    """Batches of powers of two, which a model can be warmed up with; larger requests are split."""
    sizes = tuple(2**n for n in range(largest.bit_length()))
    split = largest if largest < REQUEST else 0
    return Batching(max(largest, REQUEST), micros, 1000, threads, sizes, split)


def start(cores: int) -> Setting:
    """Where the search begins."""
    return Setting(sized(32, 2000, 2), cores)


def _threads(at: Setting, cores: int) -> Iterator[Setting]:
    """With small batches too, which are best where each batch has a core of its own."""
    assert at.batching
    ways = ((1, cores), (2, cores), (cores, 1), (2 * cores, 1))
    for size, (threads, intra) in itertools.product((32, 8), ways):
        yield Setting(sized(size, at.batching.batch_timeout_micros, threads), intra)


def _sizes(at: Setting, _: int) -> Iterator[Setting]:
    assert at.batching
    for size in (8, 16, 32, 64):
        found = sized(size, at.batching.batch_timeout_micros, at.batching.num_batch_threads)
        yield replace(at, batching=found)


def _timeouts(at: Setting, _: int) -> Iterator[Setting]:
    assert at.batching
    for micros in (0, 1000, 2000, 5000, 10_000):
        yield replace(at, batching=replace(at.batching, batch_timeout_micros=micros))


AXES: tuple[Callable[[Setting, int], Iterator[Setting]], ...] = (_threads, _sizes, _timeouts)


@dataclass(frozen=True)
class Point:
    """A setting under a number of callers."""

    setting: Setting
    callers: int
    images_per_second: float
    tail: float


Turns = dict[Setting, list[float]]
_Turn = TypeVar("_Turn")


def shares(turns: Mapping[_Turn, Sequence[float]]) -> dict[_Turn, float]:
    """Of those who take turns: the median, by round, of each one's rate ÷ the round's highest."""
    highest = [max(rates) or 1.0 for rates in zip(*turns.values(), strict=True)]
    return {
        each: statistics.median(a / b for a, b in zip(rates, highest, strict=True))
        for each, rates in turns.items()
    }


@dataclass
class Tuning:
    """What came of a search.

    Attributes:
        cores: that the servers had.
        limit: of the 99th percentile, in seconds.
        points: all that were measured.
        turns: of each axis, images a second within the limit, by round.
        best: the setting that answers most images a second within the limit.
    """

    cores: int
    limit: float
    points: list[Point] = field(default_factory=list)
    turns: list[Turns] = field(default_factory=list)
    best: Setting | None = None

    def medians(self) -> list[Point]:
        """A point for each setting and number of callers, of all rounds."""
        found: dict[tuple[Setting, int], list[Point]] = {}
        for point in self.points:
            found.setdefault((point.setting, point.callers), []).append(point)
        return [
            Point(
                *of,
                statistics.median(point.images_per_second for point in points),
                statistics.median(point.tail for point in points),
            )
            for of, points in found.items()
        ]

    def frontier(self) -> list[Point]:
        """The points that no other beats in both throughput and tail, by throughput."""
        found: list[Point] = []
        for point in sorted(self.medians(), key=lambda p: (-p.images_per_second, p.tail)):
            if not found or point.tail < found[-1].tail:
                found.append(point)
        return found[::-1]


@dataclass(frozen=True)
class Bench:
    """How servers are started and measured.

    Attributes:
        command: of the server, with {port} and {flags} in it.
        settings: of the client, without an address.
        payload: makes what is sent, of a client.
        window: seconds.
        folder: for batching files while servers run.
        tell: what is told of each step.
    """

    command: str
    settings: dict[str, Any]
    payload: Callable[[Client], list[Payload]]
    window: float
    folder: Path
    tell: Callable[[str], None]

    def __post_init__(self) -> None:
        for place in (PORT, FLAGS):
            if place not in self.command:
                raise TFSError(f"server command {self.command!r}: has no {place} to be filled in")

    @contextmanager
    def serving(self, setting: Setting, cores: int) -> Iterator[Senders]:
        """What sends to a server with a setting.

        Raises:
            TFSError: it does not start.
        """
        port = servers.free_port()
        config = self.folder / f"{port}.config"
        if setting.batching is not None:
            config.write_text(setting.batching.to_text())
        settings = {**self.settings, "address": f"localhost:{port}"}
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise TFSError(f"server command {self.command!r}: {error}") from error
        # A model's warm-up may have larger batches than any setting lets through.
        flags = [*setting.flags(config), "--enable_model_warmup=false"]
        filled = [part for word in words for part in (flags if word == FLAGS else [word])]
        filled = [word.replace(PORT, str(port)) for word in filled]
        try:
            with (
                Client(**settings) as client,
                servers.running(filled, client, cores),
                measure.senders(settings, self.payload(client)) as senders,
            ):
                yield senders
        except FileNotFoundError as error:
            raise TFSError(f"server command {self.command!r}: no such program") from error


def search(bench: Bench, cores: int, limit: float, rounds: int) -> Tuning:
    """Vary one axis after another; all settings of one take turns, in so many rounds.

    Raises:
        TFSError: a server does not start, or none is within the limit.
    """
    tuning = Tuning(cores, limit)
    best = start(cores)
    for axis in AXES:
        turns: Turns = {setting: [] for setting in (best, *axis(best, cores))}
        with ExitStack() as stack:
            sending = {s: stack.enter_context(bench.serving(s, cores)) for s in turns}
            for _ in range(rounds):
                for setting, rate in _round(bench, tuning, sending).items():
                    turns[setting].append(rate)
        tuning.turns.append(turns)
        best = max(turns, key=shares(turns).__getitem__)
    if not any(itertools.chain(*tuning.turns[-1].values())):
        lowest = min(point.tail for point in tuning.points)
        raise TFSError(
            f"no setting has its p99 within {1e3 * limit:g} ms: the lowest is {1e3 * lowest:.0f} ms"
        )
    tuning.best = best
    return tuning


def _round(bench: Bench, tuning: Tuning, sending: dict[Setting, Senders]) -> dict[Setting, float]:
    """Each setting's images a second within the limit, 0 if never.

    All take their turn with a number of callers before any has more: a minute later the same
    server may answer half as many. One that has passed the limit is not asked again.
    """
    best = dict.fromkeys(sending, 0.0)
    within = dict(sending)
    for callers in CALLERS:
        for setting, senders in list(within.items()):
            found = senders.measure(Closed(callers), bench.window, most=WINDOWS)
            point = Point(setting, callers, found.whole.images_per_second, _tail(found))
            tuning.points.append(point)
            bench.tell(f"{setting}, {callers} callers: {point.images_per_second:.1f} images/s")
            if point.tail > tuning.limit:
                del within[setting]
            else:
                best[setting] = max(best[setting], point.images_per_second)
    return best


def _tail(found: Measurement) -> float:
    """The 99th percentile, in seconds, of however few requests; none of what says nothing."""
    latency = found.whole.latency
    if found.bad or found.invalid or not latency.total_count:
        return math.inf
    return float(latency.get_value_at_percentile(TAIL)) / 1e6


@dataclass
class Scenarios:
    """MLPerf's, of one setting, by round: seconds, requests a second, images a second."""

    single_stream: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)
    offline: list[float] = field(default_factory=list)


def beside_untuned(
    bench: Bench, best: Setting, cores: int, limit: float, rounds: int
) -> dict[str, Scenarios]:
    """The scenarios of the best setting and of those nobody tuned, which take turns.

    All servers run all the time; one that is not asked takes nothing. A scenario is every
    server's before the next one begins.
    """
    settings = {**UNTUNED, "tuned": best}
    found = {name: Scenarios() for name in settings}
    with ExitStack() as stack:
        senders = {
            name: stack.enter_context(bench.serving(setting, cores))
            for name, setting in settings.items()
        }
        for turn in range(rounds):
            all_of = {
                name: scenarios.measuring(sender, bench.window, lambda _: None)
                for name, sender in senders.items()
            }
            for name, measuring in all_of.items():
                alone = scenarios.single_stream(measuring, turn)
                bench.tell(f"{name}: {alone}")
                found[name].single_stream.append(alone.value)
            for name, measuring in all_of.items():
                offline = scenarios.offline(measuring, turn)
                bench.tell(f"{name}: {offline}")
                found[name].offline.append(offline.value)
            for name, measuring in all_of.items():
                highest = found[name].offline[-1]
                server = scenarios.server(measuring, bench.window, limit, highest, 1, turn)
                bench.tell(f"{name}: {server}")
                found[name].server.append(server.value)
    return found


def scaled(setting: Setting, measured: int, cores: int) -> Setting:
    """The same setting for another number of cores: threads grow with them, batches do not."""
    assert setting.batching
    threads = setting.batching.num_batch_threads
    if setting.intra_op == measured:  # each batch has all cores
        return replace(setting, intra_op=cores)
    threads = max(1, round(threads * cores / measured))
    return replace(setting, batching=replace(setting.batching, num_batch_threads=threads))


def anywhere(setting: Setting, measured: int) -> Setting:
    """The same for any number of cores, where the server's own defaults follow them."""
    assert setting.batching
    if setting.intra_op == measured:
        return replace(setting, intra_op=0)
    if setting.batching.num_batch_threads == measured:
        return replace(setting, batching=replace(setting.batching, num_batch_threads=0))
    return setting


def files(tunings: Sequence[Tuning]) -> dict[str, str]:
    """Paths below the folder of configuration files -> their text.

    There is one pair of files for each limit of cores, and one for any number of them. What was
    measured is as measured; other limits are derived from the largest that was.
    """
    measured = {tuning.cores: tuning for tuning in tunings}
    largest = measured[max(measured)]
    assert largest.best
    found = _pair(
        "", anywhere(largest.best, largest.cores), f"measured on {largest.cores} cores, for any"
    )
    for cores in sorted({*LIMITS, *measured}):
        origin = measured.get(cores, largest)
        assert origin.best
        setting = scaled(origin.best, origin.cores, cores)
        how = "measured" if cores in measured else f"derived from {origin.cores} cores"
        found |= _pair(f"cpus/{cores}/", setting, f"for a CPU limit of {cores}, {how}")
    return found


def _pair(folder: str, setting: Setting, how: str) -> dict[str, str]:
    assert setting.batching
    flags = [flag for flag in setting.flags(Path(CONFIG)) if "batching" not in flag]
    return {
        f"{folder}{CONFIG}": f"{HEAD}# Written by `tfs tune`, {how}.\n{setting.batching.to_text()}",
        f"{folder}{FLAG_FILE}": "".join(f"{flag}\n" for flag in flags),
    }


def report(
    tunings: Sequence[Tuning], compared: dict[str, Scenarios], facts: dict[str, str]
) -> Iterator[str]:
    """Lines of Markdown."""
    yield "# Tuning" if tunings else "# A setting beside what nobody tuned"
    yield ""
    yield from (f"- {name}: {value}" for name, value in facts.items())
    for tuning in tunings:
        yield ""
        yield f"## {tuning.cores} core{'s' if tuning.cores > 1 else ''}"
        yield ""
        limit = f"{1e3 * tuning.limit:g} ms"
        yield f"Images a second with p99 within {limit}, in turns: the median with"
        yield "the least and the most, and the median of what each got ÷ the best of its round."
        for turns in tuning.turns:
            yield ""
            yield "| setting | images/s | ÷ the best |"
            yield "|---|---|---|"
            for setting, share in sorted(shares(turns).items(), key=lambda item: -item[1]):
                mark = " **chosen**" if setting == tuning.best else ""
                rates = turns[setting]
                spread = f"{statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})"
                yield f"| {setting}{mark} | {spread} | {share:.2f} |"
        yield ""
        yield "The frontier, of all settings and numbers of callers, medians of the rounds:"
        yield ""
        yield "| images/s | p99 ms | callers | setting |"
        yield "|---|---|---|---|"
        for point in tuning.frontier():
            yield (
                f"| {point.images_per_second:.1f} | {1e3 * point.tail:.0f} | {point.callers} | "
                f"{point.setting} |"
            )
    yield from _compared(compared)


def _compared(compared: dict[str, Scenarios]) -> Iterator[str]:
    tuned = compared["tuned"]
    yield ""
    yield "## Beside what nobody tuned"
    yield ""
    yield "Medians of rounds in which the servers take turns; in brackets the tuned server's figure"
    yield "÷ this one's, by round: the median, and the least and the most."
    yield ""
    yield "| server | SingleStream p90 ms | Server requests/s | Offline images/s |"
    yield "|---|---|---|---|"
    for name, found in compared.items():
        cells = [
            _cell(found.single_stream, tuned.single_stream, 1e3),
            _cell(found.server, tuned.server, 1),
            _cell(found.offline, tuned.offline, 1),
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def _cell(values: Sequence[float], tuned: Sequence[float], scale: float) -> str:
    median = f"{scale * statistics.median(values):.1f}"
    ratios = [t / value for t, value in zip(tuned, values, strict=True) if value]
    if values is tuned or not ratios:
        return median
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    return f"{median} ({middle:.2f}, {low:.2f} to {high:.2f})"
