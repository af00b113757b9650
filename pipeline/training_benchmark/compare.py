"""Let all configurations of training take turns, and print what came of it.

    make benchmark-training [FLAGS="--rounds 9 --output docs/training-benchmark.md"]

prints Markdown: images per second of the whole step (forward, backward, update) for the network at
224×224 and at the shape of preset `best`, in float32 and bfloat16, on synthetic and on real data,
and of torchvision's GoogLeNet where PyTorch is installed. It takes about 25 minutes on two cores,
most of them PyTorch's compiler, and 10 GB of memory.

Nothing else may run meanwhile: on busy cores PyTorch's threads wait for each other, and it can
become ten times slower, TensorFlow two times.
"""

import contextlib
import dataclasses
import importlib.util
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tfs_client.bench import machine
from tqdm import tqdm

from pipeline import config, files
from pipeline.config import Config
from pipeline.errors import PipelineError
from pipeline.training_benchmark import report, start_up
from pipeline.training_benchmark.report import (
    FILES,
    OURS,
    PEER,
    REAL,
    SYNTHETIC,
    Result,
    Row,
)
from pipeline.training_benchmark.worker import Worker, WorkerError

T = TypeVar("T")

STARTS = 3  # of which the median is told; fewer where there are fewer rounds
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Shape:
    """What is trained.

    Attributes:
        title: its heading.
        recipe: of this project's training; learning rate and averaging do not matter, since the
            step takes as long with any rate, and the peer does not average.
        classes: of the network.
        photos: number of pictures made for it, 500×375 JPEG; 0 for the recipe's data set.
    """

    title: str
    recipe: Config
    classes: int
    photos: int = 0


SHAPES = (
    Shape(
        "224×224, batches of 32, 1000 classes, with auxiliary heads, torchvision's layers",
        # Crops as for ImageNet: every picture is cut and resized each time, and where it comes
        # from its file, as ImageNet's do, decoded.
        config.from_preset("imagenet", variant="torchvision", learning_rate=1e-3, averaging=0.0),
        classes=1000,
        photos=300,
    ),
    Shape(
        "Preset best: 28×28, batches of 128, 10 classes, stem tiny",
        config.from_preset("best", learning_rate=1e-3, averaging=0.0),
        classes=10,
    ),
)


@dataclass(frozen=True)
class Configuration:
    """One worker: a network, a framework, and how it computes.

    Attributes:
        name: unique in its shape.
        framework: `OURS` or `PEER`.
        module: what the worker runs.
        settings: its own.
        data: what it is measured on, in the worker's words.
    """

    name: str
    framework: str
    module: str
    settings: Mapping[str, object]
    data: tuple[str, ...] = (SYNTHETIC,)

    @property
    def rows(self) -> list[Row]:
        return [Row(self.name, self.framework, data) for data in self.data]


def benchmark(
    data_dir: Path,
    mirror: str | None,
    rounds: int,
    seconds: float,
    output: Path | None = None,
    shapes: Sequence[Shape] = SHAPES,
) -> None:
    """Measure all shapes, one after the other, and print what came of it.

    Args:
        data_dir: see `dataset.load`.
        mirror: see `dataset.load`.
        rounds: how often each configuration has its turn.
        seconds: how long a turn is.
        output: file to write the same text into.
        shapes: what to measure.

    Raises:
        PipelineError: no rounds or no time to measure in.
    """
    if rounds < 1 or not seconds > 0:
        raise PipelineError(
            f"{rounds} rounds of {seconds:g} seconds measure nothing: choose at least one round, "
            "and more than 0 seconds"
        )
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)  # or it fails now, not in 20 minutes
    described = machine.describe()
    peer = all(importlib.util.find_spec(name) for name in ("torch", "torchvision"))
    results = []
    with tempfile.TemporaryDirectory() as photos:
        for number, shape in enumerate(shapes):
            chosen = configurations(shape, data_dir, mirror, Path(photos) / str(number))
            chosen = [c for c in chosen if peer or c.framework == OURS]
            results.append(measure(shape.title, chosen, rounds, seconds))
    starts: list[float] = []
    failure = ""
    try:
        for _ in _counted("starting", range(min(STARTS, rounds))):
            starts.append(start_up.first_step_seconds(data_dir, mirror))
    except PipelineError as error:  # what was measured before is not thrown away
        failure = str(error)
    text = report.write(described, results, starts, failure, rounds, seconds, peer)
    print(text, end="", flush=True)
    if output:
        files.write(output, lambda partial: partial.write_text(text))
    check_own(results)
    if failure:
        raise PipelineError(failure)


def check_own(results: Sequence[Result]) -> None:
    """What was measured is printed before; but a benchmark of which half is missing has failed.

    Raises:
        PipelineError: something of this project's own could not be measured; peers may fail.
    """
    for result in results:
        for name, why in result.failures.items():
            if name.startswith(OURS):
                raise PipelineError(f"{result.title}: {name} could not be measured: {why}")


def configurations(
    shape: Shape, data_dir: Path, mirror: str | None, photos: Path
) -> list[Configuration]:
    """All that is measured of a shape; photos are kept in a folder that need not exist."""
    recipe = shape.recipe
    if shape.photos:
        recipe = dataclasses.replace(recipe, dataset=str(photos))
    ours = [
        Configuration(
            f"{OURS} {precision}",
            OURS,
            "pipeline.training_benchmark.tensorflow_worker",
            {
                "recipe": config.to_dict(dataclasses.replace(recipe, precision=precision)),
                "classes": shape.classes,
                "data_dir": str(data_dir),
                "mirror": mirror,
                "photos": shape.photos,
            },
            (SYNTHETIC, REAL, FILES) if shape.photos else (SYNTHETIC, REAL),
        )
        for precision in PRECISIONS
    ]
    peers = [
        Configuration(
            f"{PEER} {mode} {precision}",
            PEER,
            "pipeline.training_benchmark.torch_worker",
            {
                "image_size": recipe.image_size,
                "batch_size": recipe.batch_size,
                "classes": shape.classes,
                "variant": recipe.variant,
                "stem": recipe.stem,
                "auxiliary_heads": recipe.auxiliary_heads,
                "bf16": precision == "bf16",
                "compile": mode == "compiled",
            },
        )
        for mode in ("eager", "compiled")
        for precision in PRECISIONS
    ]
    return ours + peers


def measure(title: str, chosen: Sequence[Configuration], rounds: int, seconds: float) -> Result:
    """Start a worker for each configuration, and let them take turns.

    A configuration that fails is left out from then on.
    """
    result = Result(title)
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        # One after the other: each compiles on all cores.
        for configuration in _counted("warming up", chosen):
            worker = stack.enter_context(Worker(configuration.module, configuration.settings))
            with _failures(result, configuration.name, worker):
                worker.warm_up()
                workers[configuration.name] = worker
                result.versions |= worker.versions
                result.rates |= {row: [] for row in configuration.rows}
        for row in _counted("measuring", _turns(list(result.rates), rounds)):
            if row.configuration in result.failures:
                continue
            worker = workers[row.configuration]
            with _failures(result, row.configuration, worker):
                result.rates[row].append(worker.measure(row.data, seconds))
    return result


def _turns(rows: Sequence[Row], rounds: int) -> list[Row]:
    """All rows in each round, each round beginning with another one."""
    return [
        rows[(number + place) % len(rows)] for number in range(rounds) for place in range(len(rows))
    ]


@contextlib.contextmanager
def _failures(result: Result, configuration: str, worker: Worker) -> Iterator[None]:
    """Note that a configuration failed, and go on without it."""
    try:
        yield
    except WorkerError as error:
        worker.close()
        result.failures[configuration] = str(error)
        for row in [row for row in result.rates if row.configuration == configuration]:
            del result.rates[row]


def _counted(what: str, things: Sequence[T]) -> Iterator[T]:
    """The things one by one, behind a progress bar on a terminal."""
    return iter(tqdm(things, what, leave=False, disable=None, file=sys.stderr))
