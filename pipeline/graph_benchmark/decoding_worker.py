"""Decoding and resizing of photos in the graph, as a worker of `compare`.

    python -m pipeline.graph_benchmark.decoding_worker '{"how": "served"}'

`served` is what the export does, in which a bad image fails alone; `plain` are TensorFlow's
operations for a JPEG, with which it fails the whole batch.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from pipeline import preprocessing
from pipeline.graph_benchmark import inputs
from pipeline.training_benchmark import tensorflow_worker, worker
from pipeline.training_benchmark.worker import Data, Step


def start(settings: dict[str, Any]) -> Data:
    """500×375 JPEGs, a few at a time, to 224×224."""
    decode = {"served": _served, "plain": _plain}[settings["how"]]
    photos = [
        tf.io.encode_jpeg(tensorflow_worker.photo(seed), quality=90).numpy()
        for seed in range(max(inputs.DECODED))
    ]

    def opened(count: int) -> Callable[[], Step]:
        batch = tf.constant(photos[:count])

        def step() -> int:
            decode(batch).numpy()
            return count

        return lambda: step

    return {inputs.photos(count): opened(count) for count in inputs.DECODED}


@tf.function
def _served(records: tf.Tensor) -> tf.Tensor:
    return preprocessing.decode_batch(records, inputs.IMAGE_SIZE)[0]


@tf.function
def _plain(records: tf.Tensor) -> tf.Tensor:
    def decode(record: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_jpeg(record, channels=3)
        resized = tf.image.resize(image, (inputs.IMAGE_SIZE, inputs.IMAGE_SIZE), antialias=True)
        return tf.cast(tf.round(resized), tf.uint8)

    pixels = tf.TensorSpec((inputs.IMAGE_SIZE, inputs.IMAGE_SIZE, 3), tf.uint8)
    return tf.map_fn(decode, records, fn_output_signature=pixels)


if __name__ == "__main__":
    sys.exit(worker.serve({"TensorFlow": tf.__version__}, start))
