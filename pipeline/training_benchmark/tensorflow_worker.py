"""The project's own training, as a worker of `compare`.

    python -m pipeline.training_benchmark.tensorflow_worker '{"recipe": {…}, "classes": 10, …}'

trains through `learner.Learner` and strategy `one`, on batches that lie in memory (`synthetic`),
on the recipe's data set through `feed.feed` (`real`), and on photos as if they did not fit in
memory (`real, from files`).
"""

import itertools
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tf_keras as keras

from pipeline import dataset, feed, strategy
from pipeline.config import Config
from pipeline.learner import Batch, Learner
from pipeline.training_benchmark import worker
from pipeline.training_benchmark.report import FILES, REAL, SYNTHETIC
from pipeline.training_benchmark.worker import Data, Step

BATCHES = 4  # of synthetic data, in turn
STEPS_PER_EPOCH = 1000  # for the learning rate, which nothing here depends on

PHOTO_HEIGHT, PHOTO_WIDTH = 375, 500  # ImageNet's most frequent size
PHOTO_OCTAVES = 8  # of noise, each weaker than the one before: about 100 kB as JPEG
PHOTO_CLASSES = 2


def start(settings: dict[str, Any]) -> Data:
    """Build the network, and open the data.

    Args:
        settings: `recipe`, fields of `config.Config`; `classes`, the number of classes;
            `data_dir` and `mirror`, see `dataset.load`; `photos`, how many pictures to write into
            the recipe's folder where it is still empty; 0 for a data set that is there.
    """
    recipe, classes = Config(**settings["recipe"]), settings["classes"]
    keras.utils.set_random_seed(recipe.seed)
    chosen = strategy.start("one")
    learner = Learner(recipe, tuple(map(str, range(classes))), STEPS_PER_EPOCH, chosen)
    if settings["photos"]:
        write_photos(Path(recipe.dataset), settings["photos"])
    data = dataset.load(recipe.dataset, Path(settings["data_dir"]), settings["mirror"])
    sources = {REAL: feed.feed(data.train, recipe)}
    if settings["photos"]:
        sources[FILES] = feed.Feed(data.train, recipe, memory=None)
    synthetic = _batches(recipe, classes)

    def steps(batches: Iterator[Batch]) -> Step:
        def step() -> int:
            learner.learn(next(batches), [False, False])
            return recipe.batch_size

        return step

    def real(source: feed.Feed) -> Step:
        return steps(strategy.distribute(chosen, partial(source.batches, 0, recipe.image_size)))

    return {SYNTHETIC: lambda: steps(itertools.cycle(synthetic))} | {
        name: partial(real, source) for name, source in sources.items()
    }


def write_photos(folder: Path, number: int) -> None:
    """Fill an empty folder with pictures of two classes, JPEG; about 60 a second."""
    if folder.exists():
        return
    partial = folder.with_suffix(".partial")
    for i in range(number):
        path = partial / str(i % PHOTO_CLASSES) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_jpeg(photo(i), quality=90).numpy())
    partial.rename(folder)


def photo(seed: int) -> tf.Tensor:
    """Noise of all scales, less of the finer ones, as in photos: uint8 [H,W,3]."""
    random = np.random.default_rng(seed)
    picture = tf.zeros((PHOTO_HEIGHT, PHOTO_WIDTH, 3))
    for octave in range(1, PHOTO_OCTAVES + 1):
        noise = random.normal(0, 60 / 1.1**octave, (3 * 2**octave // 4 + 1, 2**octave, 3))
        picture += tf.image.resize(noise, (PHOTO_HEIGHT, PHOTO_WIDTH), "bicubic")
    return tf.cast(tf.clip_by_value(picture + 127, 0, 255), tf.uint8)


def _batches(recipe: Config, classes: int) -> list[Batch]:
    """Noise: uint8 pixels [B,S,S,3] and int64 labels [B]."""
    random = np.random.default_rng(recipe.seed)
    shape = (recipe.batch_size, recipe.image_size, recipe.image_size, 3)
    return [
        (
            tf.constant(random.integers(0, 256, shape, np.uint8)),
            tf.constant(random.integers(0, classes, recipe.batch_size)),
        )
        for _ in range(BATCHES)
    ]


if __name__ == "__main__":
    libraries = {"TensorFlow": tf.__version__, "tf-keras": keras.__version__}
    sys.exit(worker.serve(libraries, start))
