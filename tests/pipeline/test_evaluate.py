import json

import numpy as np
import pytest
import tensorflow as tf

from pipeline import dataset, evaluate
from pipeline.errors import PipelineError


def test_measures_what_a_known_classifier_does():
    logits = tf.constant([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0], [0.0, 4.0]])
    batches = [(logits[:3], tf.constant([0, 1, 1])), (logits[3:], tf.constant([1]))]
    metrics, predictions = evaluate.measure(lambda x: x, batches, 4, ("a", "b"))
    assert predictions.tolist() == [0, 1, 0, 1]
    assert metrics.images == 4
    assert metrics.accuracy == 0.75
    assert metrics.class_accuracy == {"a": 1.0, "b": pytest.approx(2 / 3)}
    wrong, right = np.log(1 + np.exp(4)), np.log(1 + np.exp(-4))
    assert metrics.loss == pytest.approx((3 * right + wrong) / 4, rel=1e-5)


def test_results_are_left_in_the_run_folder(run, data):
    saved = json.loads(run.evaluation.read_text())
    labels = np.array([int(label) for _, label in data.test.images()])
    predictions = np.load(run.predictions)
    assert saved["images"] == data.test.size == len(predictions)
    assert saved["accuracy"] == pytest.approx((predictions == labels).mean())


def test_three_colours_are_learnt(run):
    assert json.loads(run.evaluation.read_text())["accuracy"] >= 2 / 3


def test_other_classes_are_refused(run, image_folder, tmp_path):
    (tmp_path / "other").mkdir()
    for name in ("blue", "green"):
        (tmp_path / "other" / name).symlink_to(image_folder / name)
    with pytest.raises(PipelineError, match=r"2 classes and run .* trained on 3"):
        evaluate.evaluate(run, dataset.load(str(tmp_path / "other")))
