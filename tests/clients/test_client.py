"""The client against a real server with a real model; test_calls.py has the rest."""

import json

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tfs_client import (
    Classification,
    Client,
    InvalidImageError,
    NotFoundError,
    TensorSpec,
    VersionStatus,
)

from tests.conftest import COLOURS, ROOT, colour_image
from tests.serving.processes import serving

MODELS = ROOT / "tests" / "serving" / "conformance" / "models"


@pytest.fixture
def images(tmp_path) -> list[str]:
    paths = []
    for name in COLOURS:
        path = tmp_path / f"{name}.png"
        path.write_bytes(tf.io.encode_png(colour_image(name, 200)).numpy())
        paths.append(str(path))
    return paths


def test_a_path_bytes_and_pixels_get_the_same_answer(client, images):
    by_path = client.classify(images[0])
    with open(images[0], "rb") as file:
        by_bytes = client.classify(file.read())
    by_pixels = client.classify(colour_image("blue", 200))
    assert isinstance(by_path, Classification)
    assert by_path == by_bytes == by_pixels
    assert (by_path.model, by_path.version) == ("googlenet", 1)
    assert {label.name for label in by_path.labels} == set(COLOURS)
    assert by_path.score == max(label.score for label in by_path.labels)
    assert by_path.label == by_path.labels[0].name


def test_answers_keep_the_order_of_the_images(client, images):
    mixed = [images[0], colour_image("red", 1), images[1], colour_image("green", 2), images[2]]
    together = client.classify(mixed)
    assert [a.label for a in together] == [client.classify(image).label for image in mixed]
    assert client.classify(iter(mixed)) == together
    assert client.classify([]) == []


def test_a_batch_of_pixels_is_several_images(client):
    batch = np.stack([np.full((30, 40, 3), colour, np.uint8) for colour in COLOURS.values()])
    answers = client.classify(batch)
    assert len(answers) == 3
    assert answers[1].label == client.classify(batch[1]).label


def test_bad_images_raise_or_are_returned_in_their_places(client, images, tmp_path):
    junk = tmp_path / "junk.txt"
    junk.write_text("not an image")
    mixed = [images[0], str(junk), "/no/such.png", images[1]]
    with pytest.raises(InvalidImageError):
        client.classify(mixed)
    answers = client.classify(mixed, errors="return")
    bad = [isinstance(answer, InvalidImageError) for answer in answers]
    assert bad == [False, True, True, False]
    assert answers[1].image == str(junk)
    assert "not a JPEG, PNG, GIF or BMP" in answers[1].reason
    assert "No such file" in answers[2].reason
    with pytest.raises(ValueError, match="'ignore'"):
        client.classify(mixed, errors="ignore")


def test_status_and_metadata(client):
    assert client.status() == [VersionStatus(1, "AVAILABLE", "")]
    metadata = client.metadata().signatures
    assert set(metadata) == {"serving_default", "predict_images", "classify", "embed"}
    assert metadata["classify"].method == "tensorflow/serving/classify"
    assert metadata["predict_images"].inputs == {"images": TensorSpec("uint8", (-1, -1, -1, 3))}
    assert metadata["serving_default"].outputs["valid"] == TensorSpec("bool", (-1,))


def test_a_missing_model_or_version_is_typed(client, images):
    with Client(client.address, model="nope") as other, pytest.raises(NotFoundError) as caught:
        other.classify(images[0])
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert caught.value.model == "nope"
    assert caught.value.address == client.address
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    with pytest.raises(NotFoundError, match="Specific"):
        client.classify(images[0], version=99)


def test_served_answers_are_the_offline_ones(client, data, run):
    from pipeline import samples

    encoded, _ = zip(*samples.encoded(data, data.test.size), strict=True)
    served = [sorted(COLOURS).index(answer.label) for answer in client.classify(encoded)]
    assert served == np.load(run.predictions).tolist()
    assert json.loads(run.evaluation.read_text())["images"] == len(served)


def test_the_other_methods_against_a_server_with_other_models(connect, tmp_path):
    def config(*names: str) -> str:
        models = (
            f'config {{ name: "{name}" base_path: "{MODELS / name}" model_platform: "tensorflow" }}'
            for name in names
        )
        return f"model_config_list {{ {' '.join(models)} }}"

    (tmp_path / "models.config").write_text(config("affine"))
    with serving(f"--model_config_file={tmp_path / 'models.config'}") as started:
        client = connect(f"localhost:{started.port}", model="affine")
        client.wait_until_ready(60)
        examples = [{"x": 1.0}, {"x": 2.0}]
        regressed = client.regress(examples, signature="regress")
        both = client.multi_inference(examples, {"regress": "regress", "classify": "classify"})
        assert both["regress"] == regressed
        assert [len(answer.labels) > 0 for answer in both["classify"]] == [True, True]
        y = client.predict({"x": [1.0, 2.0]}, outputs=["y"])
        assert y["y"].tolist() == pytest.approx(regressed.values)
        assert (y.model, y.version) == (regressed.model, regressed.version) == ("affine", 2)
        with pytest.raises(NotFoundError):
            client.status(model="dtypes")
        client.reload_config(config("affine", "dtypes"), timeout=60)
        assert client.status(model="dtypes")[0].state == "AVAILABLE"
        assert "serving_default" in client.metadata(model="dtypes").signatures
