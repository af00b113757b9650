"""Small real things that tests share: images, a trained run, a model repository, a server."""

import fcntl
import os
import shutil
import signal
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tfs_client import Client

from pipeline import config, dataset, evaluate, export, local_server, publish, strategy, train
from pipeline import run as runs
from pipeline.dataset import Dataset
from pipeline.run import Run

# Batches run within the tests' own process too, and each that is under way holds one of these; with
# TensorFlow's own number, one per CPU, several at once would wait for each other for ever.
tf.config.threading.set_inter_op_parallelism_threads(8)

# In the background of a script, or under nohup, they would be ignored here and in every child.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).parent.parent
COLOURS = {"blue": (30, 40, 220), "green": (20, 200, 40), "red": (230, 30, 20)}
IMAGES_PER_CLASS = 16
FEW_STEPS = {"epochs": 20, "batch_size": 8, "learning_rate": 0.002, "precision": "fp32"}


def colour_image(name: str, seed: int) -> np.ndarray:
    """Noise around a class's colour, of a size of its own: uint8 [H,W,3]."""
    random = np.random.default_rng([seed, *COLOURS[name]])
    height, width = random.integers(20, 60, 2)
    noise = random.normal(0, 30, (height, width, 3))
    return (noise + COLOURS[name]).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Fill a folder in the first testing process that asks; the others wait and share it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def shared(name: str, fill: Callable[[Path], object]) -> Path:
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (root / name).exists():
                partial = Path(tempfile.mkdtemp(dir=root))
                fill(partial)
                partial.rename(root / name)
        return root / name

    return shared


@pytest.fixture(scope="session")
def image_folder(once: Callable[..., Path]) -> Path:
    """A data set: three colours, JPEG and PNG; nobody changes it."""

    def fill(folder: Path) -> None:
        for name in COLOURS:
            (folder / "colours" / name).mkdir(parents=True)
            for i in range(IMAGES_PER_CLASS):
                suffix, encode = ("jpg", tf.io.encode_jpeg) if i % 2 else ("png", tf.io.encode_png)
                data = encode(colour_image(name, i)).numpy()
                (folder / "colours" / name / f"{i}.{suffix}").write_bytes(data)

    return once("images", fill) / "colours"


@pytest.fixture(scope="session")
def recipe(image_folder: Path) -> config.Config:
    """A few steps of training."""
    return config.from_preset("demo", dataset=str(image_folder), **FEW_STEPS)


@pytest.fixture(scope="session")
def data(image_folder: Path) -> Dataset:
    return dataset.load(str(image_folder))


def train_once(recipe: config.Config, data: Dataset, root: Path) -> Run:
    """A run, trained."""
    started = strategy.start(recipe.strategy)
    run = train.open_run(None, root, recipe, data, started)
    train.train(run, data, started)
    return run


@pytest.fixture(scope="session")
def run(
    once: Callable[..., Path],
    recipe: config.Config,
    data: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """A trained and evaluated run, in a folder of this process."""
    trained = once("trained", lambda root: evaluate.evaluate(train_once(recipe, data, root), data))
    return runs.latest(shutil.copytree(trained, tmp_path_factory.mktemp("trained") / "runs"))


@pytest.fixture(scope="session")
def exported(once: Callable[..., Path], run: Run) -> Path:
    made = once("exported", lambda root: shutil.copytree(export.export(run), root / "export"))
    return shutil.copytree(made / "export", run.export, dirs_exist_ok=True)


@pytest.fixture(scope="session")
def models(run: Run, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with one version of googlenet."""
    repository = tmp_path_factory.mktemp("models")
    publish.publish(run, repository, force=True)
    return repository


@pytest.fixture(scope="session")
def client(models: Path) -> Iterator[Client]:
    """A client of a server process that serves the repository with batching."""
    with local_server.serving(models) as client:
        yield client


class Affine(tf.Module):
    """y = slope·x + 1 under two signatures, and the sum and product of two inputs."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = tf.Variable(slope)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def line(self, x):
        return {"y": self.slope * x + 1.0}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.int64, "b"),
            tf.TensorSpec([None, None], tf.float32, "a"),
        ]
    )
    def pair(self, b, a):
        b = tf.cast(b, tf.float32)
        return {"sums": tf.reduce_sum(a, 1) + b, "products": a * b[:, tf.newaxis]}


@pytest.fixture
def add_version(tmp_path: Path) -> Callable[[int, float], Path]:
    """Publish y = slope·x + 1 as a version of tmp_path/affine."""

    def add(version: int, slope: float = 2.0) -> Path:
        model = Affine(slope)
        staging = tmp_path / f"staging-{version}"
        signatures = {"serving_default": model.line, "pair": model.pair}
        tf.saved_model.save(model, str(staging), signatures=signatures)
        target = tmp_path / "affine" / str(version)
        target.parent.mkdir(exist_ok=True)
        return staging.rename(target)

    return add


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m MODULE ARGUMENTS…` as a user would."""

    def run_module(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=ROOT,
            check=False,
        )

    return run_module
