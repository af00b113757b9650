"""Let the exported graph, in each precision, and other runtimes take turns; print what came of it.

    make benchmark-graph [FLAGS="--rounds 9 --output docs/graph-benchmark.md"]

prints Markdown: images per second of GoogLeNet at 224×224 from uint8 pixels to logits, in batches
of 1, 8 and 32, on all cores; of ONNX Runtime and OpenVINO too where they are installed
(`.venv/bin/pip install -e '.[peers]'`); and what it costs to decode photos so that one can fail
alone. Ten minutes on two cores, in which nothing else may run.
"""

import importlib.util
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tfs_client.bench import machine

from pipeline import files
from pipeline.errors import PipelineError
from pipeline.graph_benchmark import inputs
from pipeline.training_benchmark import report
from pipeline.training_benchmark.compare import Configuration, check_own, measure
from pipeline.training_benchmark.report import Result, Row

OURS, ONNX_RUNTIME, OPENVINO = "TensorFlow", "ONNX Runtime", "OpenVINO"
PLAIN = f"{OURS} plain"
WORKERS = "pipeline.graph_benchmark"
PEER_PACKAGES = ("onnx", "onnxruntime", "openvino", "nncf")
INSTALL_PEERS = (
    "ONNX Runtime and OpenVINO are not installed: `.venv/bin/pip install -e '.[peers]'` to measure "
    "them too."
)


class Goal(NamedTuple):
    """At least so many times the rate of something, at a batch size."""

    precision: str
    to: str  # a peer, or PLAIN
    batch_size: int
    ratio: float


GOALS = (
    *(Goal("int8", OPENVINO, batch, ratio) for batch, ratio in ((1, 0.7), (8, 1.0), (32, 1.0))),
    *(Goal("int8", PLAIN, batch, 3.0) for batch in (8, 32)),
    *(
        Goal(precision, "best", batch, ratio)
        for precision in ("bf16", "fp32")
        for batch, ratio in ((1, 0.9), (8, 1.0), (32, 1.0))
    ),
)


DECODING_GOAL = 1.15  # times the plain operations' time, at the most
SERVED, PLAIN_DECODING = DECODING = tuple(
    Configuration(
        f"{OURS} {how}",
        OURS,
        f"{WORKERS}.decoding_worker",
        {"how": how},
        tuple(map(inputs.photos, inputs.DECODED)),
    )
    for how in ("served", "plain")
)


def benchmark(rounds: int, seconds: float, output: Path | None = None) -> None:
    """Measure everything and print what came of it.

    Args:
        rounds: how often each configuration has its turn.
        seconds: how long a turn is.
        output: file to write the same text into.

    Raises:
        PipelineError: no rounds or no time to measure in.
    """
    if rounds < 1 or not seconds > 0:
        raise PipelineError(
            f"{rounds} rounds of {seconds:g} seconds measure nothing: choose at least one round, "
            "and more than 0 seconds"
        )
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
    described = machine.describe()
    peers = all(importlib.util.find_spec(name) for name in PEER_PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "googlenet.onnx"
        if peers:
            _write_onnx(model)
        result = measure("inference", configurations(model, peers), rounds, seconds)
        decoding = measure("decoding", DECODING, rounds, seconds)
    lines = [
        "# Inference throughput",
        "",
        "Images per second of GoogLeNet at 224×224 with 1000 classes, from uint8 pixels to logits,",
        f"measured by `make benchmark-graph`: the median of {rounds} turns of {seconds:g} s, which",
        "all configurations take in rounds. Ratios are medians of the ratios within rounds. All",
        "compute the same network with the same random weights; `plain` is the trained network",
        "frozen as it is.",
        "",
        *(f"- {name}: {text}" for name, text in {**described, **result.versions}.items()),
        "",
    ]
    for batch_size in inputs.BATCH_SIZES:
        lines += [f"## Batches of {batch_size}", "", *_section(result, batch_size), ""]
    lines += ["## Decoding", "", *_decoding_section(decoding), ""]
    failures = result.failures | decoding.failures
    lines += [f"{name} failed and is left out: {why}" for name, why in failures.items()]
    if not peers:
        lines.append(INSTALL_PEERS)
    text = "\n".join(lines).rstrip() + "\n"
    print(text, end="", flush=True)
    if output:
        files.write(output, lambda partial: partial.write_text(text))
    check_own([result, decoding])


def configurations(model: Path, peers: bool) -> list[Configuration]:
    """All that is measured; `model` is the network's ONNX file, which peers read."""
    batches = tuple(map(inputs.rows, inputs.BATCH_SIZES))
    ours = [
        Configuration(
            f"{OURS} {precision}", OURS, f"{WORKERS}.tensorflow_worker", {"precision": precision},
            batches,
        )
        for precision in ("plain", "fp32", "bf16", "int8")
    ]  # fmt: skip
    theirs = [
        Configuration(
            f"{name} {precision}", name, f"{WORKERS}.{module}",
            {"model": str(model), "precision": precision}, batches,
        )
        for name, module, precisions in (
            (ONNX_RUNTIME, "onnx_runtime_worker", ("fp32",)),
            (OPENVINO, "openvino_worker", ("fp32", "bf16", "int8")),
        )
        for precision in precisions
    ]  # fmt: skip
    return ours + theirs if peers else ours


def _write_onnx(path: Path) -> None:
    # Where the peers are not installed, neither is what these import.
    from pipeline.graph_benchmark import onnx_graph, tensorflow_worker

    network = tensorflow_worker.network()
    onnx_graph.write(network, tensorflow_worker.VARIANT, tensorflow_worker.STEM, path)


def _section(result: Result, batch_size: int) -> Iterator[str]:
    rows = [row for row in result.rates if row.data == inputs.rows(batch_size)]
    plain = next((row for row in rows if row.configuration == PLAIN), None)
    numbers = ["images/s", "lowest", "highest", "÷ plain", "÷ best peer"]
    table = [["runtime", "precision", *numbers]]
    for row in rows:
        rates, peer = result.rates[row], _best_peer(result, rows, _precision(row))
        table.append(
            [
                row.framework,
                _precision(row),
                *(f"{n:,.1f}" for n in (statistics.median(rates), min(rates), max(rates))),
                *(f"{result.ratio(row, to).median:.2f}" if to else "–" for to in (plain, peer)),
            ]
        )
    yield from report.aligned(table)
    yield ""
    for goal in GOALS:
        if goal.batch_size == batch_size:
            yield from _judged(result, rows, goal)


def _decoding_section(result: Result) -> Iterator[str]:
    yield "JPEGs of 500×375 to 224×224 pixels, as the export does it, where a bad one fails alone,"
    yield "and by TensorFlow's plain operations, with which it fails the batch."
    yield ""
    table = [["at a time", "served, ms", "plain, ms", "served ÷ plain"]]
    for served, plain in zip(SERVED.rows, PLAIN_DECODING.rows, strict=True):
        if served in result.rates and plain in result.rates:
            times = (f"{1e3 / statistics.median(result.rates[row]):.2f}" for row in (served, plain))
            ratio = result.ratio(plain, served)  # of rates: the other way round
            met = "met" if ratio.median <= DECODING_GOAL else "missed"
            table.append([served.data, *times, f"{ratio}; goal ≤ {DECODING_GOAL}: {met}"])
    yield from report.aligned(table)


def _judged(result: Result, rows: list[Row], goal: Goal) -> Iterator[str]:
    named = {row.configuration: row for row in rows}
    ours = named.get(f"{OURS} {goal.precision}")
    if goal.to == "best":
        other = _best_peer(result, rows, goal.precision)
    else:
        other = named.get(goal.to if goal.to == PLAIN else f"{goal.to} {goal.precision}")
    if ours and other:
        ratio = result.ratio(ours, other)
        met = "met" if ratio.median >= goal.ratio else "missed"
        yield f"- {ours.configuration} ÷ {other.configuration}: {ratio}; goal {goal.ratio}: {met}"


def _best_peer(result: Result, rows: list[Row], precision: str) -> Row | None:
    peers = [row for row in rows if row.framework != OURS and _precision(row) == precision]
    return max(peers, key=lambda row: statistics.median(result.rates[row]), default=None)


def _precision(row: Row) -> str:
    return row.configuration.removeprefix(row.framework).strip()
