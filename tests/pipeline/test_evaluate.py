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


def test_other_classes_are_refused(run, image_folder, tmp_path):
    (tmp_path / "other").mkdir()
    for name in ("blue", "green"):
        (tmp_path / "other" / name).symlink_to(image_folder / name)
    with pytest.raises(PipelineError, match=r"2 classes and run .* trained on 3"):
        evaluate.evaluate(run, dataset.load(str(tmp_path / "other")))
