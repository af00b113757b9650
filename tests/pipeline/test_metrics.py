import numpy as np
import pytest
import tensorflow as tf

from pipeline import metrics


def test_measures_what_a_known_classifier_does():
    logits = tf.constant([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0], [0.0, 4.0]])
    batches = [(logits[:3], tf.constant([0, 1, 1])), (logits[3:], tf.constant([1]))]
    measured, predictions = metrics.measure(lambda x: x, batches, 4, ("a", "b"))
    assert predictions.tolist() == [0, 1, 0, 1]
    assert measured.images == 4
    assert measured.accuracy == 0.75
    assert measured.class_accuracy == {"a": 1.0, "b": pytest.approx(2 / 3)}
    assert measured.confusion == [[1, 0], [1, 2]]
    wrong, right = np.log(1 + np.exp(4)), np.log(1 + np.exp(-4))
    assert measured.loss == pytest.approx((3 * right + wrong) / 4, rel=1e-5)


def test_a_class_without_images_has_no_accuracy():
    batches = [(tf.constant([[4.0, 0.0]]), tf.constant([0]))]
    measured, _ = metrics.measure(lambda x: x, batches, 1, ("a", "b"))
    assert measured.class_accuracy == {"a": 1.0}
