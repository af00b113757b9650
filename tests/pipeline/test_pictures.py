import io

import numpy as np
import pytest
from PIL import Image

from pipeline import pictures


@pytest.mark.parametrize("classes", [2, 10, 200])
def test_a_confusion_matrix_is_a_picture_with_a_dark_diagonal(classes):
    counts = np.eye(classes, dtype=int) * 90 + 1
    names = tuple(f"class {i}" for i in range(classes))
    picture = Image.open(io.BytesIO(pictures.confusion(counts.tolist(), names))).convert("L")
    assert min(picture.size) > 150
    assert np.asarray(picture).min() < 100


def test_a_dollar_in_a_name_is_no_formula():
    assert pictures.confusion([[1, 0], [0, 1]], ("$_$", "b"))


@pytest.mark.parametrize("name", ["猫", "x" * 250])
def test_a_name_that_cannot_be_drawn_is_no_warning(name):
    assert pictures.confusion([[1, 0], [0, 1]], (name, "b"))
