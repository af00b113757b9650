"""Let the embedded server and the same SavedModel in process take turns; print what came of it.

    make benchmark-server [FLAGS="--rounds 5 --precision int8 --output docs/server-benchmark.md"]

prints Markdown: images served per second at saturation beside the best in-process throughput of the
same file, in each precision; the 99th percentile at half that load; requests per second of a
trivial model, beside a Python gRPC server that gives everybody one answer; and how long a start
takes. `tfs bench`'s sender and the server share the cores. Ten minutes on two cores, in which
nothing else may run.
"""

import contextlib
import itertools
import math
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from tfs_client import Client
from tfs_client.bench import machine, payloads, servers
from tfs_client.bench.loads import Closed, Poisson
from tfs_client.bench.measure import Measurement, Senders, senders
from tfs_client.bench.payloads import Payload
from tfs_client.bench.sender import PREDICT
from tfs_client.bench.setting import setting_of
from tfs_client.bench.tune import shares

from pipeline import files
from pipeline.errors import PipelineError, choice
from pipeline.local_server import BATCHING_CONFIG, batching_flags
from pipeline.server_benchmark.in_process_worker import SHAPES, name
from pipeline.server_benchmark.models import EXPORT, LINE, PRECISIONS
from pipeline.training_benchmark import report
from pipeline.training_benchmark.worker import Worker

CALLERS = 64  # four batches' worth
LINE_CALLERS = (1, 32)
WINDOWS = 3  # of a turn at saturation
TAIL_REQUESTS = 600  # on average, so that there are the 500 that a 99th percentile takes
WARM_UP_SECONDS = 1.0
START_SECONDS = 120.0
BATCHES = 2  # at a time: serving/config has one for each core
SETTING = setting_of(BATCHING_CONFIG)
assert SETTING.batching
ROWS, BATCHING_DELAY = SETTING.batching.largest, SETTING.batching.batch_timeout_micros / 1e6
SERVED_GOAL = 0.90  # of the in-process throughput, at least
TAIL_GOAL = 2.0  # in-process batch latencies, and the delay, at the most
START_GOAL = 8.0  # seconds
LINE_GOALS = "goals 3,000 requests/s with 32 callers, a median of 0.9 ms with one"


@dataclass
class Measured:
    """One precision, by round.

    Attributes:
        served: images per second at saturation.
        in_process: the same of the best of all `SHAPES`, measured anew just before.
        tail: 99th percentile at half the load, in seconds.
        batch_seconds: of full batches in process, as many at a time as are served.
        verdicts: what is wrong with a turn.
    """

    served: list[float] = field(default_factory=list)
    in_process: list[float] = field(default_factory=list)
    tail: list[float] = field(default_factory=list)
    batch_seconds: list[float] = field(default_factory=list)
    verdicts: set[str] = field(default_factory=set)


def benchmark(
    rounds: int, seconds: float, precision: str | None = None, output: Path | None = None
) -> None:
    """Measure everything and print what came of it.

    Args:
        rounds: how often each server has its turn.
        seconds: how long a turn is.
        precision: the only one to measure GoogLeNet in; None for all.
        output: file to write the same text into.

    Raises:
        PipelineError: no rounds or no time to measure in, no such precision, or a server does not
            start.
    """
    if precision not in (None, *PRECISIONS):
        raise choice("precision", str(precision), PRECISIONS)
    if rounds < 1 or not seconds > 0:
        raise PipelineError(f"{rounds} rounds of {seconds:g} seconds measure nothing")
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
    described = machine.describe()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pipeline.server_benchmark.models", folder], check=True
        )
        sections = [
            line
            for each in ((precision,) if precision else PRECISIONS)
            for line in _row(each, _measure(Path(folder), each, rounds, seconds))
        ]
        sections += _start(Path(folder), rounds)
        line = list(_line(Path(folder), rounds, seconds))
    text = "\n".join(_text(described, rounds, seconds, sections, line)) + "\n"
    print(text, end="", flush=True)
    if output:
        files.write(output, lambda partial: partial.write_text(text))


def _measure(folder: Path, precision: str, rounds: int, seconds: float) -> Measured:
    """One precision: the server and the workers have turns."""
    measured = Measured()
    module, model = "pipeline.server_benchmark.in_process_worker", folder / precision / "1"
    with (
        contextlib.ExitStack() as stack,
        _serving(folder / precision, *batching_flags()) as (port, _),
        _sending(port, _payloads(port, "uint8")) as sending,
    ):
        workers: dict[int, Worker] = {}
        for intra_op in SHAPES:
            settings = {"model": str(model), "intra_op": intra_op}
            workers[intra_op] = stack.enter_context(Worker(module, settings))
        for worker in workers.values():  # they warm up side by side
            worker.warm_up()
        turns: dict[tuple[int, str], list[float]] = {
            (intra_op, name(*shape)): [] for intra_op in SHAPES for shape in SHAPES[intra_op]
        }
        like_served = SETTING.intra_op, name(BATCHES, ROWS)
        for _ in range(rounds):
            for (intra_op, shape), rates in turns.items():
                rates.append(workers[intra_op].measure(shape, seconds))
            measured.batch_seconds.append(BATCHES * ROWS / turns[like_served][-1])
            found = shares(turns)
            intra_op, best = max(found, key=found.__getitem__)
            # Anew: of nine figures the highest is also the luckiest, and a minute has passed.
            measured.in_process.append(workers[intra_op].measure(best, seconds))
            served = _saturated(sending, CALLERS, seconds)
            measured.served.append(served.whole.images_per_second)
            half = _at(sending, measured.served[-1] / 2, 2 * seconds)
            measured.tail.append(half.whole.percentile(99) or math.nan)
            measured.verdicts |= _verdicts(served, half)
    return measured


def _row(precision: str, measured: Measured) -> Iterator[str]:
    shares = [a / b for a, b in zip(measured.served, measured.in_process, strict=True)]
    tails = [
        tail / (TAIL_GOAL * batch + BATCHING_DELAY)
        for tail, batch in zip(measured.tail, measured.batch_seconds, strict=True)
    ]
    share, tail = (report.Ratio(statistics.median(x), min(x), max(x)) for x in (shares, tails))
    yield (
        f"- {precision}: served {statistics.median(measured.served):.1f}, in process "
        f"{statistics.median(measured.in_process):.1f} images/s, ratio {share}; goal "
        f"{SERVED_GOAL}: {_met(share.median >= SERVED_GOAL)}"
    )
    yield (
        f"- {precision}: p99 at half that load {1e3 * statistics.median(measured.tail):.0f} ms, "
        f"{tail} of {TAIL_GOAL:g} in-process batches of {ROWS} and the batching delay; goal "
        f"1: {_met(tail.median <= 1)}"
    )
    yield from (f"- {precision}: {verdict}" for verdict in sorted(measured.verdicts))


def _verdicts(*turns: Measurement) -> set[str]:
    """What is wrong with any of them."""
    wrong = {f"{turn.bad} requests failed or were answered wrongly" for turn in turns if turn.bad}
    return wrong | {turn.verdict for turn in turns if turn.verdict}


def _start(folder: Path, rounds: int) -> Iterator[str]:
    """From the command to AVAILABLE, when the warm-up requests are answered too."""
    starts = []
    for _ in range(rounds):
        with _serving(folder / EXPORT, *batching_flags()) as (_, seconds):
            starts.append(seconds)
    yield (
        f"- start to AVAILABLE of an export with four signatures and its warm-up requests: "
        f"{statistics.median(starts):.1f} s ({min(starts):.1f} to {max(starts):.1f}); goal "
        f"{START_GOAL:g} s: {_met(statistics.median(starts) <= START_GOAL)}"
    )


def _line(folder: Path, rounds: int, seconds: float) -> Iterator[str]:
    """The trivial model, in turns with a server that computes nothing."""
    with contextlib.ExitStack() as stack:
        port, _ = stack.enter_context(_serving(folder / LINE))
        one = _payloads(port, "float32")[:1]
        answer = folder / "answer"
        answer.write_bytes(_answer(port, one[0]))
        constant = stack.enter_context(_answering(answer))
        ours, theirs = (stack.enter_context(_sending(each, one)) for each in (port, constant))
        for callers in LINE_CALLERS:
            turns = [
                (_saturated(ours, callers, seconds), _saturated(theirs, callers, seconds))
                for _ in range(rounds)
            ]
            (rate, median), (top, least) = map(_rate_and_median, zip(*turns, strict=True))
            yield (
                f"- {callers} caller{'s' if callers > 1 else ''}: {rate:,.0f} requests/s, median "
                f"{median:.2f} ms; the other {top:,.0f} requests/s, {least:.2f} ms; ratio of "
                f"rates {rate / top:.2f}"
            )
            yield from (f"- {verdict}" for verdict in sorted(_verdicts(*itertools.chain(*turns))))


def _rate_and_median(turns: Sequence[Measurement]) -> tuple[float, float]:
    """Requests a second, and milliseconds: the medians of all turns."""
    return (
        statistics.median(turn.whole.images_per_second for turn in turns),
        statistics.median(1e3 * (turn.whole.percentile(50) or math.nan) for turn in turns),
    )


def _text(
    described: dict[str, str],
    rounds: int,
    seconds: float,
    rows: list[str],
    line: list[str],
) -> Iterator[str]:
    yield "# The embedded server's throughput"
    yield ""
    yield "GoogLeNet at 224×224 with 1000 classes, random weights, from uint8 pixels, a picture"
    ways = sum(map(len, SHAPES.values()))
    yield f"a request, {CALLERS} callers, serving/config; in process, the best of {ways}"
    yield "ways to run the same SavedModel, measured anew before each turn of the server's."
    yield f"Measured by `make benchmark-server`: the median of {rounds} turns of at least"
    yield f"{seconds:g} s that server and process take in rounds, with the sender on the same"
    yield "cores; in brackets, the ratios of single rounds."
    yield ""
    yield from (f"- {name}: {text}" for name, text in described.items())
    yield ""
    yield "## GoogLeNet"
    yield ""
    yield from rows
    yield ""
    yield "## A trivial model"
    yield ""
    yield "y = 0.5 x + 2 of one float, without batching, beside a Python gRPC server of two threads"
    yield f"that gives everybody one answer; {LINE_GOALS}."
    yield ""
    yield from line


def _met(met: bool) -> str:
    return "met" if met else "missed"


@contextlib.contextmanager
def _serving(base_path: Path, *flags: str) -> Iterator[tuple[int, float]]:
    """The embedded server on a free port, and how long it took to answer."""
    port = servers.free_port()
    words = [
        "serving",
        f"--port={port}",
        "--model_name=m",
        f"--model_base_path={base_path}",
        *flags,
    ]
    with _process(words, port) as seconds:
        yield port, seconds


@contextlib.contextmanager
def _answering(answer: Path) -> Iterator[int]:
    """A server that gives everybody the same answer, on a free port."""
    port = servers.free_port()
    with _process(["pipeline.server_benchmark.constant", str(port), str(answer)], port):
        yield port


def _payloads(port: int, kind: str) -> list[Payload]:
    with Client(f"localhost:{port}", "m") as client:
        return payloads.make(client, kind)


def _answer(port: int, payload: Payload) -> bytes:
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        predict: Callable[..., bytes] = channel.unary_unary(PREDICT)
        return predict(payload.request, timeout=START_SECONDS)


def _sending(port: int, made: list[Payload]) -> contextlib.AbstractContextManager[Senders]:
    return senders({"address": f"localhost:{port}", "model": "m"}, made)


def _saturated(sending: Senders, callers: int, seconds: float) -> Measurement:
    return sending.measure(
        Closed(callers), seconds, warm_up=WARM_UP_SECONDS, least=WINDOWS, most=WINDOWS
    )


def _at(sending: Senders, rate: float, seconds: float) -> Measurement:
    """As long as a 99th percentile takes, which may be longer."""
    windows = math.ceil(TAIL_REQUESTS / rate / seconds)
    return sending.measure(
        Poisson(rate), seconds, warm_up=WARM_UP_SECONDS, least=windows, most=windows
    )


@contextlib.contextmanager
def _process(words: list[str], port: int) -> Iterator[float]:
    """A Python module as a process, from when its port is open, which the server opens last."""
    started = time.perf_counter()
    with servers.session([sys.executable, "-m", *words], stderr=subprocess.DEVNULL) as process:
        while not _open(port):
            if process.poll() is not None or time.perf_counter() > started + START_SECONDS:
                raise PipelineError(f"python -m {' '.join(words)} did not start")
            time.sleep(0.05)
        yield time.perf_counter() - started


def _open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0
