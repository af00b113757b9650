"""The same picture gets the same answer from training's side, the export, and the client.

240 pictures of many sizes, shapes, formats and qualities.
"""

import dataclasses
import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from pipeline import dataset, evaluate, preprocessing
from tests.conftest import COLOURS, colour_image

FORMS = (
    ("jpg", "RGB", {"quality": 20}),
    ("jpg", "RGB", {"quality": 75, "progressive": True}),
    ("jpg", "RGB", {"quality": 95, "subsampling": 0}),
    ("jpg", "CMYK", {"quality": 90}),
    ("jpg", "L", {}),
    ("png", "RGB", {}),
    ("png", "RGBA", {}),
    ("png", "P", {}),
    ("png", "I;16", {}),
    ("gif", "P", {}),
    ("gif", "L", {}),
    ("bmp", "RGB", {}),
)
PICTURES = 20  # of each


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return [
        write(folder / f"{kind}-{number}", number, *form)
        for kind, form in enumerate(FORMS)
        for number in range(PICTURES)
    ]


def write(path: Path, number: int, form: str, mode: str, options: dict) -> Path:
    """A picture from 1 to 1500 pixels wide and high, the larger ones rarer."""
    random = np.random.default_rng([number, *map(ord, form + mode)])
    size = [int(side) for side in np.exp(random.uniform(0, np.log(1500), 2))]
    colour = sorted(COLOURS)[number % len(COLOURS)]
    image = PIL.Image.fromarray(colour_image(colour, 1000 + number)).resize(size)
    if mode == "I;16":
        image = PIL.Image.fromarray(np.array(image.convert("L"), np.uint16) * 257)
    else:
        image = image.convert(mode)
    data = io.BytesIO()
    image.save(data, {"jpg": "JPEG"}.get(form, form), **options)
    path = path.with_suffix(f".{form}")
    path.write_bytes(data.getvalue())
    return path


@pytest.fixture(scope="module")
def offline(run, data, files) -> tuple[np.ndarray, np.ndarray]:
    """What evaluation sees and finds: uint8 pixels [N,S,S,3] and probabilities [N,C]."""
    records = tf.data.Dataset.from_tensor_slices(([*map(str, files)], [0] * len(files)))
    split = dataclasses.replace(data.test, records=records, size=len(files))
    pixels = np.concatenate([x for x, _ in dataset.batches(split, run.config.image_size)])
    logits = evaluate.load_network(run)(pixels, training=False)["logits"]
    return pixels, tf.nn.softmax(logits).numpy()


def test_the_pixels_are_equal(run, files, offline):
    encoded = tf.constant([file.read_bytes() for file in files])
    together, valid = preprocessing.decode_batch(encoded, run.config.image_size)
    assert valid.numpy().all()
    np.testing.assert_array_equal(together, offline[0])
    in_graph = tf.function(
        lambda row: preprocessing.decode_batch(row, run.config.image_size)[0],
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    alone = [in_graph(row[tf.newaxis]) for row in encoded]
    np.testing.assert_array_equal(np.concatenate(alone), offline[0])


def test_the_export_and_the_client_agree_with_evaluation(run, exported, client, files, offline):
    _, probabilities = offline
    best = [run.class_names[label] for label in probabilities.argmax(1)]
    assert len(set(best)) == len(COLOURS)
    signature = tf.saved_model.load(str(exported)).signatures["serving_default"]
    served = signature(tf.constant([file.read_bytes() for file in files]))
    assert [row[0].decode() for row in served["classes"].numpy()] == best
    np.testing.assert_allclose(served["probabilities"], probabilities, atol=1e-4)
    assert [answer.label for answer in client.classify(files)] == best
    assert [client.classify(file).label for file in files] == best
