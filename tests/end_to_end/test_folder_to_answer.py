"""A folder of images, through every stage's command line, to answers over gRPC.

The answers are asked for with tensorflow-serving-api's own stubs, which nobody here wrote.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from pipeline import evaluate, local_server, preprocessing
from pipeline import run as runs
from tests.conftest import COLOURS, FEW_STEPS, ROOT, colour_image

TIMEOUT = 30


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Where the commands leave runs and the model repository."""
    folder = tmp_path_factory.mktemp("work")
    return folder / "runs", folder / "models"


@pytest.fixture(scope="module")
def run_commands(image_folder, folders) -> Path:
    """Train, evaluate, export and publish; returns the run's folder."""
    runs_folder, models = folders
    recipe = [f"--{name.replace('_', '-')}={value}" for name, value in FEW_STEPS.items()]
    for arguments in (
        ("train", "--dataset", image_folder, *recipe),
        ("evaluate",),
        ("export",),
        ("publish", "--repository", models, "--force"),
    ):
        subprocess.run(
            [sys.executable, "-m", "pipeline", *map(str, arguments), "--runs", str(runs_folder)],
            cwd=ROOT, check=True, timeout=200,
        )  # fmt: skip
    (run,) = runs_folder.iterdir()
    return run


@pytest.fixture(scope="module")
def channel(run_commands, folders) -> Iterator[grpc.Channel]:
    with (
        local_server.serving(folders[1]) as client,
        grpc.insecure_channel(client.address) as channel,
    ):
        yield channel


@pytest.fixture(scope="module")
def prediction(channel) -> prediction_service_pb2_grpc.PredictionServiceStub:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


IMAGES = [colour_image(name, 400 + i) for i, name in enumerate(COLOURS)]
ENCODED = [tf.io.encode_png(image).numpy() for image in IMAGES]


@pytest.fixture(scope="module")
def expected(run_commands) -> dict[str, np.ndarray]:
    """What the trained network itself says of the images, without the export or a server."""
    run = runs.load(run_commands)
    pixels = tf.stack([preprocessing.to_pixels(tf.constant(x), 28) for x in IMAGES])
    outputs = evaluate.load_network(run)(pixels, training=False)
    return {
        "probabilities": tf.nn.softmax(outputs["logits"]).numpy(),
        "embedding": outputs["embedding"].numpy(),
    }


def predict(stub, signature: str, name: str, value) -> dict[str, np.ndarray]:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "googlenet"
    request.model_spec.signature_name = signature
    request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    response = stub.Predict(request, timeout=TIMEOUT)
    return {key: tf.make_ndarray(tensor) for key, tensor in response.outputs.items()}


def check_answers(answer: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(answer["probabilities"], expected["probabilities"], atol=1e-4)
    best = [sorted(COLOURS)[i] for i in expected["probabilities"].argmax(1)]
    assert [row[0].decode() for row in answer["classes"]] == best
    np.testing.assert_allclose(
        answer["scores"], -np.sort(-expected["probabilities"], axis=1), atol=1e-4
    )
    assert answer["valid"].all()


def test_serving_default(prediction, expected):
    check_answers(predict(prediction, "", "image_bytes", ENCODED), expected)


def test_serving_default_keeps_a_bad_image_in_its_row(prediction, expected):
    answer = predict(prediction, "serving_default", "image_bytes", [b"junk", *ENCODED])
    assert answer["valid"].tolist() == [False, True, True, True]
    check_answers({key: value[1:] for key, value in answer.items()}, expected)


def test_predict_images(prediction, expected):
    answers = [predict(prediction, "predict_images", "images", x[np.newaxis]) for x in IMAGES]
    check_answers({key: np.concatenate([a[key] for a in answers]) for key in answers[0]}, expected)


def test_embed(prediction, expected):
    answer = predict(prediction, "embed", "image_bytes", ENCODED)
    np.testing.assert_allclose(answer["embedding"], expected["embedding"], atol=1e-3)
    assert answer["valid"].all()


def test_classify(prediction, expected):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = "googlenet"
    request.model_spec.signature_name = "classify"
    for data in ENCODED:
        example = request.input.example_list.examples.add()
        example.features.feature["image/encoded"].bytes_list.value.append(data)
    response = prediction.Classify(request, timeout=TIMEOUT)
    assert response.model_spec.version.value == 1
    for row, probabilities in zip(
        response.result.classifications, expected["probabilities"], strict=True
    ):
        scores = {label.label: label.score for label in row.classes}
        assert scores == pytest.approx(
            dict(zip(sorted(COLOURS), probabilities.tolist(), strict=True)), abs=1e-4
        )


def test_metadata_and_status(prediction, channel):
    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = "googlenet"
    response = prediction.GetModelMetadata(asked, timeout=TIMEOUT)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    named = {key for key, value in signatures.signature_def.items() if value.method_name}
    assert named == {"serving_default", "predict_images", "classify", "embed"}
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "googlenet"
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    (version,) = stub.GetModelStatus(status, timeout=TIMEOUT).model_version_status
    assert version.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE


def test_what_was_trained_is_recorded_in_what_is_served(run_commands, folders, image_folder):
    manifest = json.loads(
        (folders[1] / "googlenet" / "1" / "assets.extra" / "manifest.json").read_text()
    )
    assert manifest["run"] == run_commands.name
    assert manifest["dataset"] == str(image_folder)
    assert manifest["metrics"]["images"] > 0
