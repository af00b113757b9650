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
from tfs_client.bench.loads import Closed
from tfs_client.bench.measure import Measurement, Senders
from tfs_client.bench.payloads import Payload
from tfs_client.bench.setting import UNTUNED, Setting, sized

PORT, FLAGS = "{port}", "{flags}"
CALLERS = (1, 4, 16, 64)
TAIL = 99.0
WINDOWS = 5  # of a point, at the most


def start(cores: int) -> Setting:
    """Where the search begins."""
    return Setting(sized(16, 2000, 2), cores)


def _threads(at: Setting, cores: int) -> Iterator[Setting]:
    """In two sizes, since small batches are best where each has a core of its own."""
    assert at.batching
    ways = ((1, cores), (2, cores), (cores, 1), (2 * cores, 1))
    for size, (threads, intra) in itertools.product((16, 8), ways):
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
        best: the setting that answers most images a second within the limit.
        points: all that were measured.
        turns: of each axis, images a second within the limit, by round.
    """

    cores: int
    limit: float
    best: Setting
    points: list[Point] = field(default_factory=list)
    turns: list[Turns] = field(default_factory=list)

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
        with (
            Client(**settings) as client,
            servers.running(filled, client, cores),
            measure.senders(settings, self.payload(client)) as senders,
        ):
            yield senders


def search(bench: Bench, cores: int, limit: float, rounds: int) -> Tuning:
    """Vary one axis after another; all settings of one take turns, in so many rounds.

    Raises:
        TFSError: a server does not start, or none is within the limit.
    """
    tuning = Tuning(cores, limit, start(cores))
    for axis in AXES:
        turns: Turns = {setting: [] for setting in (tuning.best, *axis(tuning.best, cores))}
        with ExitStack() as stack:
            sending = {s: stack.enter_context(bench.serving(s, cores)) for s in turns}
            for _ in range(rounds):
                for setting, rate in _round(bench, tuning, sending).items():
                    turns[setting].append(rate)
        tuning.turns.append(turns)
        tuning.best = max(turns, key=shares(turns).__getitem__)
    if not any(itertools.chain(*tuning.turns[-1].values())):
        lowest = min(point.tail for point in tuning.points)
        raise TFSError(
            f"no setting has its p99 within {1e3 * limit:g} ms: the lowest is {1e3 * lowest:.0f} ms"
        )
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
