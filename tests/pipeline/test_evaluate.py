import dataclasses
import json

import numpy as np
import pytest

from pipeline import dataset, evaluate
from pipeline.errors import PipelineError


def test_results_are_left_in_the_run_folder(run, data):
    saved = json.loads(run.evaluation.read_text())
    labels = np.array([int(label) for _, label in data.test.images()])
    predictions = np.load(run.predictions)
    assert saved["dataset"] == data.name
    assert saved["images"] == data.test.size == len(predictions)
    assert saved["accuracy"] == pytest.approx((predictions == labels).mean())
    assert np.diag(saved["confusion"]).sum() == (predictions == labels).sum()
    assert run.confusion.read_bytes().startswith(b"\x89PNG")


def test_three_colours_are_learnt(run):
    assert json.loads(run.evaluation.read_text())["accuracy"] >= 2 / 3


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"images": "many", "accuracy": 1}'])
def test_a_record_that_cannot_be_read_is_named(run, tmp_path, text):
    broken = dataclasses.replace(run, path=tmp_path)
    assert evaluate.recorded(broken) is None
    broken.evaluation.write_text(text)
    with pytest.raises(PipelineError, match=r"evaluation\.json is broken .*: evaluate"):
        evaluate.recorded(broken)


def test_weights_that_are_none_are_named(run, tmp_path):
    broken = dataclasses.replace(run, path=tmp_path)
    broken.weights.write_bytes(run.weights.read_bytes()[:1000])
    with pytest.raises(PipelineError, match=r"weights\.h5 does not fit its run .*: train again"):
        evaluate.load_network(broken)


def test_other_classes_are_refused(run, image_folder, tmp_path):
    (tmp_path / "other").mkdir()
    for name in ("blue", "green"):
        (tmp_path / "other" / name).symlink_to(image_folder / name)
    with pytest.raises(PipelineError, match=r"2 classes and run .* trained on 3"):
        evaluate.evaluate(run, dataset.load(str(tmp_path / "other")))
