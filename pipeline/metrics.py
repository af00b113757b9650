"""What a classifier does on labelled images."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tqdm import tqdm


@dataclass(frozen=True)
class Metrics:
    """What a classifier did on a split.

    Attributes:
        images: number of images.
        accuracy: share whose most probable class is the right one, 0 to 1.
        loss: mean cross-entropy, in nats.
        class_accuracy: the same share within each class, by class name.
        confusion: number of images of each class (row, by label) that got each answer (column).
    """

    images: int
    accuracy: float
    loss: float
    class_accuracy: dict[str, float]
    confusion: list[list[int]]


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
    with tqdm(desc="measuring", total=images, unit=" images", disable=None, leave=False) as bar:
        for pixels, batch_labels in batches:
            logits.append(predict(pixels).numpy())
            labels.append(batch_labels.numpy())
            bar.update(len(batch_labels))
    all_logits, all_labels = np.concatenate(logits), np.concatenate(labels)
    predictions = all_logits.argmax(axis=1)
    losses = keras.losses.sparse_categorical_crossentropy(all_labels, all_logits, from_logits=True)
    confusion = np.zeros((len(class_names), len(class_names)), int)
    np.add.at(confusion, (all_labels, predictions), 1)
    by_class = {
        name: float(row[label] / row.sum())
        for label, (name, row) in enumerate(zip(class_names, confusion, strict=True))
        if row.sum()
    }
    accuracy = float((predictions == all_labels).mean())
    loss = float(np.mean(losses.numpy()))
    return Metrics(len(predictions), accuracy, loss, by_class, confusion.tolist()), predictions
