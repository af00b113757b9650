"""The pipeline's command line: one sub-command per stage; parses and calls, nothing else."""

import argparse
import math
import os
import signal
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, NoReturn

# TensorFlow reads it when it is imported; it would greet every stage with a page of device notes.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# int8 has no other kernels than oneDNN's; TensorFlow turns them on by itself on newer x86 alone.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Else it imports Keras 3 as well, beside the tf-keras that is used.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

from pipeline import config
from pipeline import run as runs
from pipeline.errors import PipelineError
from pipeline.repository import local_folder
from pipeline.verdict import Thresholds

# Stages are imported when they run: TensorFlow takes seconds, which --help and a mistake need not.


def data(options: Namespace) -> None:
    """Prepare or check the data set, and leave some test images as files"""
    from pipeline import dataset, samples

    loaded = dataset.load(options.dataset or "fashion_mnist", options.data_dir, options.mirror)
    print(
        f"{loaded.name}: {loaded.train.size:,} training and {loaded.test.size:,} test images of "
        f"{len(loaded.class_names)} classes: {', '.join(loaded.class_names)}"
    )
    print(f"sample images: {samples.write(loaded, options.data_dir)}")


def train(options: Namespace) -> None:
    """Train a network, or go on with an interrupted --run; leaves a run folder"""
    recipe = _recipe(options)
    if options.run and (options.run / runs.RECORD).exists():
        begun = runs.read(options.run)
        _check_same(begun, options)
        if begun.finished:
            print(f"run {begun.path} is trained already")
            return
        recipe = begun.config
    elif options.run:
        _check_new(options)
    from pipeline import strategy

    workers = strategy.start(
        recipe.strategy, options.wait_seconds
    )  # before anything else uses TensorFlow
    from pipeline import dataset, train

    loaded = dataset.load(recipe.dataset, options.data_dir, options.mirror)
    wait_seconds = options.wait_seconds
    chosen = train.open_run(options.run, options.runs, recipe, loaded, workers, wait_seconds)
    train.train(chosen, loaded, workers, options.checkpoint_seconds, wait_seconds)


def import_weights(options: Namespace) -> None:
    """Make a run of a checkpoint of torchvision's GoogLeNet"""
    if not options.weights:
        raise PipelineError("no weights are named: give --weights googlenet.pth")
    from pipeline import weights

    names = options.classes and _lines(options.classes)
    weights.import_torchvision(options.weights, options.runs, names)


def evaluate(options: Namespace) -> None:
    """Measure a run's network on the test split"""
    from pipeline import dataset, evaluate

    chosen = _run(options)
    loaded = dataset.load(chosen.config.dataset, options.data_dir, options.mirror)
    evaluate.evaluate(chosen, loaded)


def export(options: Namespace) -> None:
    """Write a run's SavedModel"""
    chosen = _run(options)
    from pipeline import dataset, export

    precision, name = options.precision or "fp32", options.dataset or chosen.config.dataset
    measured = precision in export.ALLOWED_DROP
    loaded = dataset.load(name, options.data_dir, options.mirror) if measured else None
    export.export(chosen, precision, loaded)


def validate(options: Namespace) -> int:
    """Judge a run's SavedModel on a server: fit to publish? Exit code 1 when refused"""
    chosen = _run(options)
    thresholds = Thresholds(
        options.floor, options.margin, options.latency_ratio, options.memory_ratio, options.images
    )
    from pipeline import dataset, validate

    loaded: dataset.Dataset | PipelineError
    name = options.dataset or chosen.config.dataset
    try:
        loaded = dataset.load(name, options.data_dir, options.mirror)
    except PipelineError as error:
        if options.dataset:
            raise
        loaded = error  # imported weights come without their data
    verdict = validate.validate(
        chosen, loaded, options.repository, thresholds, options.server_command
    )
    return 0 if verdict.blessed else 1


def publish(options: Namespace) -> None:
    """Put a run's SavedModel into the model repository as the next version"""
    chosen = _run(options)
    from pipeline import publish

    publish.publish(chosen, options.repository, options.force)


def promote(options: Namespace) -> None:
    """Give a published version the label stable or canary"""
    from pipeline import promote

    promote.promote(
        options.repository, options.version, options.label, options.address, options.wait_seconds
    )


def rollback(options: Namespace) -> None:
    """Give the label stable back to the version that had it before"""
    from pipeline import promote

    promote.rollback(options.repository, options.address, options.wait_seconds)


def versions(options: Namespace) -> None:
    """List the published versions"""
    from pipeline import versions

    print(versions.table(options.repository))


def prune(options: Namespace) -> None:
    """Delete old versions that have no label"""
    from pipeline import versions

    versions.prune(options.repository, options.keep)


def benchmark(options: Namespace) -> int:
    """Measure the published model on the embedded server"""
    from pipeline import benchmark, samples

    return benchmark.benchmark(
        samples.folder(options.dataset or "fashion_mnist", options.data_dir),
        _folder(options.repository),
        options.address,
        options.flags,
    )


def tune(options: Namespace) -> int:
    """Look for the embedded server's best settings for the published model"""
    from pipeline import benchmark, samples

    return benchmark.tune(
        samples.folder(options.dataset or "fashion_mnist", options.data_dir),
        _folder(options.repository),
        options.flags,
    )


def benchmark_training(options: Namespace) -> None:
    """Measure training throughput and start-up, beside PyTorch where it is installed"""
    from pipeline.training_benchmark import compare

    compare.benchmark(
        options.data_dir, options.mirror, options.rounds, options.seconds, options.output
    )


def benchmark_graph(options: Namespace) -> None:
    """Measure inference in each precision, beside ONNX Runtime and OpenVINO where installed"""
    from pipeline.graph_benchmark import compare

    compare.benchmark(options.rounds, options.seconds, options.output)


def benchmark_server(options: Namespace) -> None:
    """Measure the embedded server beside the same SavedModel in process"""
    from pipeline.server_benchmark import compare

    compare.benchmark(options.rounds, options.seconds, options.precision, options.output)


def demo(options: Namespace) -> None:
    """All of it once, with a comparison of served and offline answers"""
    from pipeline import demo

    demo.demo(options.data_dir, options.mirror, options.runs, _folder(options.repository))


def seconds(text: str) -> float:
    """What an option says; argparse tells its user this function's name.

    Raises:
        ValueError: it is no time to wait.
    """
    number = float(text)
    if not 0 <= number < math.inf:
        raise ValueError
    return number


OPTIONS: dict[str, dict[str, Any]] = {
    "--dataset": {"help": "TFDS name, or folder/<class>/*.jpg"},
    "--data-dir": {"type": Path, "default": Path("data"), "help": "where data sets are kept"},
    "--mirror": {"help": "base address of a TFDS data set's files, https://… or file:///…"},
    "--preset": {"help": f"recipe: {', '.join(sorted(config.PRESETS))}; demo if left out"},
    "--epochs": {"type": int, "help": "in place of the preset's"},
    "--batch-size": {"type": int, "help": "in place of the preset's"},
    "--learning-rate": {"type": float, "help": "in place of the preset's"},
    "--holdout": {"type": float, "help": "share of the training images to measure on instead"},
    "--variant": {"help": f"form of the network: {', '.join(config.VARIANTS)}"},
    "--init-from": {"help": "run folder or weights file whose weights to start from"},
    "--freeze": {"help": f"last stage that keeps its weights: {', '.join(config.STAGES)}"},
    "--precision": {
        "help": f"of training: {', '.join(config.PRECISIONS)}; of an export, and of what is "
        "served: fp32, bf16, int8"
    },
    "--strategy": {"help": f"tf.distribute strategy: {', '.join(config.STRATEGIES)}"},
    "--seed": {"type": int, "help": "of weights, order and augmentation"},
    "--weights": {"type": Path, "help": "a checkpoint of torchvision's googlenet, .pth"},
    "--classes": {"type": Path, "help": "file with a class name per line, for --weights"},
    "--sync-batch-norm": {
        "action": "store_true",
        "default": None,
        "help": "take batch statistics over all replicas, not each its own",
    },
    "--checkpoint-seconds": {"type": seconds, "default": 300.0, "help": "between checkpoints"},
    "--wait-seconds": {
        "type": seconds,
        "default": 300.0,
        "help": "longest wait for a worker or a server",
    },
    "--run": {
        "type": Path,
        "help": "a run's folder; if left out, the newest, and for train a new one",
    },
    "--runs": {"type": Path, "default": Path("runs"), "help": "where run folders are"},
    "--address": {"help": "host:port of a server; benchmark starts one if it is left out"},
    "flags": {"nargs": "*", "metavar": "FLAG", "help": "of `tfs bench`, after --"},
    "--rounds": {"type": int, "default": 5, "help": "turns of each configuration"},
    "--seconds": {"type": float, "default": 6.0, "help": "length of a turn"},
    "--output": {"type": Path, "help": "file to write the printed text into as well"},
    "--repository": {"default": "models", "help": "model repository: a path, or gs://…"},
    "--floor": {"type": float, "help": "least accuracy, 0 to 1; half way from chance to 1"},
    "--margin": {
        "type": float,
        "default": Thresholds.margin,
        "help": "accuracy that may be lost against the stable version (default %(default)s)",
    },
    "--latency-ratio": {
        "type": float,
        "default": Thresholds.latency_ratio,
        "help": "most that an image may take, as a multiple of stable's (default %(default)s)",
    },
    "--memory-ratio": {
        "type": float,
        "default": Thresholds.memory_ratio,
        "help": "the same of the server's peak memory (default %(default)s)",
    },
    "--images": {
        "type": int,
        "default": Thresholds.images,
        "help": "test images to measure on, at the most (default %(default)s)",
    },
    "--server-command": {
        "help": "server in place of the embedded one, such as tensorflow_model_server: its flags "
        "are appended; or a command with {port} and {repository}, which is taken as it is with "
        "these filled in, such as a container's; {repository} holds googlenet/<version>/ and "
        "batching.config"
    },
    "--force": {
        "nargs": "?",
        "const": True,
        "default": False,
        "metavar": "REASON",
        "help": "publish what the gate refuses, and record it",
    },
    "version": {"type": int, "metavar": "VERSION", "help": "number of a published version"},
    "--label": {"required": True, "help": "stable or canary"},
    "--keep": {"type": int, "required": True, "help": "how many of the newest versions stay"},
}
_DATA = ("--dataset", "--data-dir", "--mirror")
_RECIPE = (
    *("--epochs", "--batch-size", "--learning-rate", "--holdout", "--variant", "--init-from"),
    *("--freeze", "--precision", "--strategy", "--sync-batch-norm", "--seed"),
)
STAGES = {
    data: _DATA,
    train: (
        *_DATA,
        "--preset",
        *_RECIPE,
        "--run",
        "--runs",
        "--checkpoint-seconds",
        "--wait-seconds",
    ),
    import_weights: ("--weights", "--classes", "--runs"),
    evaluate: ("--run", "--runs", "--data-dir", "--mirror"),
    export: ("--run", "--runs", "--precision", *_DATA),
    validate: (
        *("--run", "--runs", *_DATA, "--repository"),
        *("--floor", "--margin", "--latency-ratio", "--memory-ratio", "--images"),
        "--server-command",
    ),
    publish: ("--run", "--runs", "--repository", "--force"),
    promote: ("version", "--label", "--address", "--wait-seconds", "--repository"),
    rollback: ("--address", "--wait-seconds", "--repository"),
    versions: ("--repository",),
    prune: ("--keep", "--repository"),
    benchmark: ("--dataset", "--data-dir", "--repository", "--address", "flags"),
    tune: ("--dataset", "--data-dir", "--repository", "flags"),
    benchmark_training: ("--data-dir", "--mirror", "--rounds", "--seconds", "--output"),
    benchmark_graph: ("--rounds", "--seconds", "--output"),
    benchmark_server: ("--rounds", "--seconds", "--precision", "--output"),
    demo: ("--data-dir", "--mirror", "--runs", "--repository"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one stage; returns the exit code: 0, 1 if the gate refuses, 2 for what users can mend."""
    parser = _Parser(prog="python -m pipeline", description="Labelled images to a published model.")
    commands = parser.add_subparsers(required=True, metavar="STAGE")
    for stage, names in STAGES.items():
        named = stage.__name__.replace("_", "-")
        command = commands.add_parser(named, help=stage.__doc__, description=stage.__doc__)
        command.set_defaults(stage=stage)
        for name in names:
            command.add_argument(name, **OPTIONS[name])
    options = parser.parse_args(arguments)
    # An exception, so that every stage cleans up behind itself.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda n, _: sys.exit(128 + n))
    try:
        return options.stage(options) or 0
    except PipelineError as error:
        print(f"pipeline: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"pipeline: error: {error}: mend that and run the stage again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pipeline: interrupted", file=sys.stderr)
        return 130


def _recipe(options: Namespace) -> config.Config:
    return config.from_preset(options.preset or "demo", **_overrides(options))


def _check_same(begun: runs.Run, options: Namespace) -> None:
    """Options may not change the recipe of a run that is gone on with."""
    for field, value in {"preset": options.preset, **_overrides(options)}.items():
        started = getattr(begun.config, field)
        chosen_then = (field, value) == ("precision", "auto")
        if value not in (None, started) and not chosen_then:
            raise PipelineError(
                f"run {begun.path} was started with {field} {started}, not {value}: leave that "
                "option out, or start another run"
            )


def _overrides(options: Namespace) -> dict[str, object]:
    names = (name.removeprefix("--").replace("-", "_") for name in ("--dataset", *_RECIPE))
    return {name: getattr(options, name) for name in names}


def _check_new(options: Namespace) -> None:
    """A name with a typing error must not begin a training, nor fill a folder of something else."""
    run, multiworker = options.run, options.strategy == "multiworker"
    if not any(x is not None for x in (options.preset, *_overrides(options).values())):
        raise PipelineError(f"no run at {run}: mend its name, or say which --preset to begin there")
    # Of several workers another may just be at it; a fresh file system has a lost+found.
    empty = not run.exists() or (
        run.is_dir() and all(path.name.startswith((".", "lost+found")) for path in run.iterdir())
    )
    if not multiworker and not empty:
        raise PipelineError(f"{run} holds something else than a run: begin it in a new folder")


def _folder(repository: str) -> Path:
    folder = local_folder(repository)
    if folder is None:
        raise PipelineError(
            f"repository {repository}: the embedded server reads folders of this machine: name one"
        )
    return folder


def _lines(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text("utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise PipelineError(f"{path} is not in UTF-8: save it as that") from error


def _run(options: Namespace) -> runs.Run:
    return runs.load(options.run) if options.run else runs.latest(options.runs)


if __name__ == "__main__":
    sys.exit(main())
