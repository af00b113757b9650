"""Measure a trained network on the test split.

    python -m pipeline evaluate [--run runs/…]

prints the accuracy and writes `evaluation.json` and `predictions.npy` into the run folder.
Fashion-MNIST takes some ten seconds on two cores.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tqdm import tqdm

from pipeline import dataset, files, train
from pipeline.dataset import Dataset
from pipeline.errors import PipelineError
from pipeline.run import Run


@dataclass(frozen=True)
class Metrics:
    """What a classifier did on a split.

    Attributes:
        images: number of images.
        accuracy: share whose most probable class is the right one, 0 to 1.
        loss: mean cross-entropy, in nats.
        class_accuracy: the same share within each class, by class name.
    """

    images: int
    accuracy: float
    loss: float
    class_accuracy: dict[str, float]


def evaluate(run: Run, data: Dataset) -> Metrics:
    """Measure a run's network, in float32, on the test split; leaves the results in the run folder.

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
    batches = dataset.test_batches(data, run.config.image_size)
    metrics, predictions = measure(predict, batches, data.test_size, data.class_names)
    files.write(run.predictions, lambda partial: np.save(partial, predictions))
    files.write_json(run.evaluation, vars(metrics))
    print(f"accuracy {metrics.accuracy:.4f}, loss {metrics.loss:.4f} on {metrics.images:,} images")
    return metrics


def load_network(run: Run) -> keras.Model:
    """A run's network in float32: uint8 [N,S,S,3] to `logits` [N,C] and `embedding` [N,1024]."""
    network = train.build(run.config, len(run.class_names))
    network.load_weights(str(run.weights))
    outputs = {name: network.output[name] for name in ("logits", "embedding")}
    return keras.Model(network.input, outputs, name="googlenet")


def measure(
    predict: Callable[[tf.Tensor], tf.Tensor],
    batches: Iterable[tuple[tf.Tensor, tf.Tensor]],
    images: int,
    class_names: tuple[str, ...],
) -> tuple[Metrics, np.ndarray]:
    """Run a classifier over labelled batches.

    Args:
        predict: uint8 pixels [N,S,S,3] to logits float32 [N,C].
        batches: pixels and int64 labels [N].
        images: number of images, for the progress bar.
        class_names: C names.

    Returns:
        The metrics, and int64 [images]: the predicted class of each image in order.
    """
    logits, labels = [], []
    with tqdm(desc="evaluating", total=images, unit=" images", disable=None) as bar:
        for pixels, batch_labels in batches:
            logits.append(predict(pixels).numpy())
            labels.append(batch_labels.numpy())
            bar.update(len(batch_labels))
    all_logits, all_labels = np.concatenate(logits), np.concatenate(labels)
    predictions = all_logits.argmax(axis=1)
    correct = predictions == all_labels
    losses = keras.losses.sparse_categorical_crossentropy(all_labels, all_logits, from_logits=True)
    by_class = {
        name: float(correct[all_labels == label].mean())
        for label, name in enumerate(class_names)
        if (all_labels == label).any()
    }
    metrics = Metrics(len(correct), float(correct.mean()), float(np.mean(losses.numpy())), by_class)
    return metrics, predictions
