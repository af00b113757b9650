"""Measure a trained network on the test split.

    python -m pipeline evaluate [--run runs/…]

prints the accuracy and writes `evaluation.json`, `predictions.npy` and `confusion.png` into the run
folder. Fashion-MNIST takes some ten seconds on two cores.
"""

import json
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from pipeline import dataset, files, learner, metrics, pictures, weights
from pipeline.dataset import Dataset
from pipeline.errors import PipelineError, reason
from pipeline.metrics import Metrics
from pipeline.run import Run


def evaluate(run: Run, data: Dataset) -> Metrics:
    """Measure a run's network, in float32, on the test split; leaves the results in the run folder.

    Raises:
        PipelineError: the data set's classes are not those the network was trained on.
    """
    measured, predictions = measure(run, data)
    files.write(run.predictions, lambda partial: np.save(partial, predictions))
    files.write(
        run.confusion,
        lambda partial: partial.write_bytes(
            pictures.confusion(measured.confusion, data.class_names)
        ),
    )
    files.write_json(run.evaluation, {"dataset": data.name, **vars(measured)})
    print(
        f"accuracy {measured.accuracy:.4f}, loss {measured.loss:.4f} on {measured.images:,} images"
    )
    return measured


def accuracy(run: Run, data: Dataset) -> float:
    """What `evaluate` found on these data, or finds; on others than the run's nothing is kept."""
    own, found = run.config.dataset, recorded(run)
    if found is None:
        if data.name == own:
            return evaluate(run, data).accuracy
    elif (found.get("dataset", own), found["images"]) == (data.name, data.test.size):
        return found["accuracy"]
    return measure(run, data)[0].accuracy


def recorded(run: Run) -> dict[str, Any] | None:
    """What `evaluate` wrote into the run folder; None if nothing.

    Raises:
        PipelineError: it cannot be read.
    """
    try:
        found = json.loads(run.evaluation.read_text())
        return {**found, "images": int(found["images"]), "accuracy": float(found["accuracy"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise PipelineError(
            f"{run.evaluation} is broken ({error}): evaluate the run again"
        ) from error


def measure(run: Run, data: Dataset) -> tuple[Metrics, np.ndarray]:
    """What a run's network does on the test split, in float32, and its answers, see `metrics`.

    Raises:
        PipelineError: the data set's classes are not those the network was trained on.
    """
    if data.class_names != run.class_names:
        raise PipelineError(
            f"dataset {data.name} has {len(data.class_names)} classes and run {run.path} was "
            f"trained on {len(run.class_names)}, or their names differ: evaluate on the same data"
        )
    network = load_network(run)
    predict = tf.function(lambda pixels: network(pixels, training=False)["logits"])
    batches = dataset.batches(data.test, run.config.image_size)
    try:
        return metrics.measure(predict, batches, data.test.size, data.class_names)
    except dataset.UNREADABLE as error:
        raise PipelineError(
            f"test data of {data.name} cannot be read any more ({reason(error)}): mend that"
        ) from error


def load_network(run: Run) -> keras.Model:
    """A run's network in float32: uint8 [N,S,S,3] to `logits` [N,C] and `embedding` [N,1024]."""
    network = learner.build(run.config, len(run.class_names))
    weights.load(network, run)
    outputs = {name: network.output[name] for name in ("logits", "embedding")}
    return keras.Model(network.input, outputs, name="googlenet")
