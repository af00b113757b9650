"""The exported graph in TensorFlow, as a worker of `compare`.

    python -m pipeline.graph_benchmark.tensorflow_worker '{"precision": "int8"}'

`precision` is one of `inference_graph.PRECISIONS`, or `plain`: the trained network frozen as it
is, in float32, with batch normalisation in operations of its own.
"""

import os
import sys
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from pipeline import googlenet, inference_graph
from pipeline.graph_benchmark import inputs
from pipeline.training_benchmark import worker
from pipeline.training_benchmark.worker import Data

VARIANT, STEM = "batch_norm", "imagenet"


def network() -> keras.Model:
    """GoogLeNet with the same random weights every time.

    Biases among them, as training leaves them: TensorFlow drops those of a fresh network, which are
    0, and then runs each ReLU by itself, since it fuses one only with a bias.
    """
    keras.utils.set_random_seed(1)
    model = googlenet.build(inputs.CLASSES, inputs.IMAGE_SIZE, VARIANT, STEM)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.beta.assign(tf.random.normal(layer.beta.shape, stddev=0.1))
    return model


def start(settings: dict[str, Any]) -> Data:
    """Build the graph in the precision of `settings`."""
    model, precision = network(), settings["precision"]
    if precision == "plain":
        pixels = tf.TensorSpec(model.input.shape, tf.uint8)
        traced = tf.function(lambda x: model(x, training=False)["logits"])
        constant = convert_variables_to_constants_v2(traced.get_concrete_function(pixels))
        return inputs.data(lambda batch: constant(tf.constant(batch))[0].numpy())
    batches = map(tf.constant, inputs.calibration())
    limits = None
    if precision == "int8":
        limits = inference_graph.calibrate(model, VARIANT, STEM, list(batches))
    graph = inference_graph.build(model, VARIANT, STEM, precision, limits)
    return inputs.data(lambda batch: graph(tf.constant(batch))["logits"].numpy())


if __name__ == "__main__":
    sys.exit(worker.serve({"TensorFlow": tf.__version__, "NumPy": np.__version__}, start))
