import dataclasses
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2
from tfs_client.bench.batching import Batching

from pipeline import dataset, evaluate, export, files, inference_graph
from pipeline.errors import PipelineError
from pipeline.local_server import BATCHING_CONFIG
from tests.conftest import COLOURS, colour_image


@pytest.fixture(scope="module")
def loaded(exported):
    return tf.saved_model.load(str(exported))


def encoded(name: str, seed: int) -> bytes:
    return tf.io.encode_png(colour_image(name, seed)).numpy()


def test_signatures_are_those_of_the_contract(loaded):
    """Contract 1, for three classes: k = 3."""
    specs = {
        name: (
            {key: (x.dtype.name, x.shape.as_list()) for key, x in inputs.items()},
            {
                key: (x.dtype.name, x.shape.as_list())
                for key, x in function.structured_outputs.items()
            },
        )
        for name, function in loaded.signatures.items()
        for inputs in (function.structured_input_signature[1],)
    }
    answer = {
        "classes": ("string", [None, 3]),
        "scores": ("float32", [None, 3]),
        "probabilities": ("float32", [None, 3]),
        "valid": ("bool", [None]),
    }
    assert specs == {
        "serving_default": ({"image_bytes": ("string", [None])}, answer),
        "predict_images": ({"images": ("uint8", [None, None, None, 3])}, answer),
        "classify": (
            {"inputs": ("string", [None])},
            {key: answer[key] for key in ("classes", "scores")},
        ),
        "embed": (
            {"image_bytes": ("string", [None])},
            {"embedding": ("float32", [None, 1024]), "valid": ("bool", [None])},
        ),
    }


def test_the_export_answers_as_the_network_does(loaded, run, data):
    batches = dataset.batches(data.test, run.config.image_size)
    pixels = tf.concat([x for x, _ in batches], 0)
    network = evaluate.load_network(run)(pixels, training=False)
    answer = loaded.signatures["predict_images"](pixels)
    np.testing.assert_allclose(answer["probabilities"], tf.nn.softmax(network["logits"]), atol=1e-5)
    assert answer["valid"].numpy().all()


def test_best_classes_come_first(loaded):
    images = tf.constant([encoded(name, 100) for name in COLOURS])
    answer = loaded.signatures["serving_default"](images)
    order = np.argsort(-answer["probabilities"].numpy(), axis=1)
    names = np.array([name.encode() for name in sorted(COLOURS)])
    np.testing.assert_array_equal(answer["classes"], names[order])
    np.testing.assert_array_equal(
        answer["scores"], np.take_along_axis(answer["probabilities"].numpy(), order, 1)
    )
    np.testing.assert_allclose(answer["probabilities"].numpy().sum(1), 1, rtol=1e-5)


def test_encoded_images_and_their_pixels_get_the_same_answer(loaded):
    image = colour_image("green", 101)
    by_bytes = loaded.signatures["serving_default"](tf.constant([encoded("green", 101)]))
    by_pixels = loaded.signatures["predict_images"](tf.constant(image[np.newaxis]))
    for key, value in by_bytes.items():
        np.testing.assert_array_equal(value, by_pixels[key])


def test_a_bad_image_has_an_empty_row_and_spoils_no_other(loaded):
    good = encoded("red", 102)
    mixed = loaded.signatures["serving_default"](tf.constant([good, b"junk", good]))
    alone = loaded.signatures["serving_default"](tf.constant([good]))
    assert mixed["valid"].numpy().tolist() == [True, False, True]
    assert mixed["classes"].numpy()[1].tolist() == [b"", b"", b""]
    assert not mixed["scores"].numpy()[1].any()
    for row in (0, 2):
        np.testing.assert_allclose(mixed["probabilities"][row], alone["probabilities"][0], 1e-4)
    embedded = loaded.signatures["embed"](tf.constant([b"junk", good]))
    assert embedded["valid"].numpy().tolist() == [False, True]
    assert not embedded["embedding"].numpy()[0].any()
    assert embedded["embedding"].numpy()[1].any()


def test_classify_reads_examples_and_says_so(loaded, exported):
    features = {
        "image/encoded": tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[encoded("blue", 103)])
        )
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    nothing = tf.train.Example()
    wrong = tf.train.Example()
    wrong.features.feature["image/encoded"].int64_list.value.append(1)
    double = tf.train.Example()
    double.features.feature["image/encoded"].bytes_list.value.extend([b"a", b"b"])
    bad = [nothing.SerializeToString(), wrong.SerializeToString(), double.SerializeToString()]
    answer = loaded.signatures["classify"](
        tf.constant([*bad, b"\xff junk", example.SerializeToString()])
    )
    expected = loaded.signatures["serving_default"](tf.constant([b""] * 4 + [encoded("blue", 103)]))
    np.testing.assert_array_equal(answer["classes"], expected["classes"])
    assert answer["scores"].numpy()[-1].any()
    assert not answer["scores"].numpy()[:-1].any()
    saved = tf.compat.v1.saved_model.load
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        definition = saved(session, ["serve"], str(exported)).signature_def["classify"]
    assert definition.method_name == export.CLASSIFY_METHOD


def test_warm_up_covers_every_signature_and_allowed_batch_size(exported, loaded):
    file = exported / "assets.extra" / "tf_serving_warmup_requests"
    batching = Batching.of_file(BATCHING_CONFIG)
    sizes = set(batching.allowed_batch_sizes)
    assert max(sizes) == batching.max_batch_size
    found = set()
    for record in tf.data.TFRecordDataset(str(file)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        if log.HasField("classify_log"):
            request = log.classify_log.request
            rows = len(request.input.example_list.examples)
        else:
            request = log.predict_log.request
            (tensor,) = request.inputs.values()
            rows = tensor.tensor_shape.dim[0].size
        found.add((request.model_spec.signature_name, rows))
    assert found == {(name, rows) for name in loaded.signatures for rows in sizes}


@pytest.fixture
def copied(run, tmp_path):
    """The run in a folder of its own, to export in other ways."""
    path = tmp_path / run.path.name
    shutil.copytree(run.path, path)
    return dataclasses.replace(run, path=path)


@pytest.mark.parametrize(("precision", "most"), [("bf16", 0.05), ("int8", 0.15)])
def test_fewer_bits_give_the_same_answers_and_the_manifest_says_so(
    copied, data, loaded, precision, most
):
    manifest = export.export(copied, precision, data) / "assets.extra" / "manifest.json"
    images = tf.constant([encoded(name, seed) for name in COLOURS for seed in range(200, 210)])
    signatures = tf.saved_model.load(str(copied.export)).signatures
    expected = loaded.signatures["serving_default"](images)
    answer = signatures["serving_default"](images)
    np.testing.assert_array_equal(answer["classes"][:, 0], expected["classes"][:, 0])
    np.testing.assert_allclose(answer["probabilities"], expected["probabilities"], atol=0.05)
    embedded, exact = (x["embed"](images)["embedding"] for x in (signatures, loaded.signatures))
    error = tf.sqrt(tf.reduce_mean((embedded - exact) ** 2) / tf.reduce_mean(exact**2))
    assert error < most
    said = json.loads(manifest.read_text())
    assert said["precision"] == precision
    assert said["precision_check"]["images"] == data.test.size
    assert said["precision_check"]["accuracy"] >= said["precision_check"]["fp32_accuracy"] - 0.005


def test_a_precision_that_costs_accuracy_is_refused_and_the_earlier_export_stays(
    copied, data, monkeypatch
):
    before = files.checksums(copied.export)
    monkeypatch.setattr(inference_graph, "_limit", lambda counts, top: top / 1000)
    with pytest.raises(PipelineError, match=r"int8 loses [\d.]+ points .* 0\.5 are allowed"):
        export.export(copied, "int8", data)
    assert files.checksums(copied.export) == before


def test_fewer_bits_need_images_to_be_measured_on(copied):
    with pytest.raises(PipelineError, match="precision int8 must be measured"):
        export.export(copied, "int8")
    with pytest.raises(PipelineError, match="fp16"):
        export.export(copied, "fp16")


def test_the_manifest_says_what_is_there(exported, run):
    manifest = json.loads((exported / "assets.extra" / "manifest.json").read_text())
    assert manifest["class_names"] == sorted(COLOURS)
    assert manifest["preset"] == "demo"
    assert manifest["tensorflow"] == tf.__version__
    assert manifest["git_commit"] == run.git_commit
    assert manifest["metrics"]["accuracy"] == json.loads(run.evaluation.read_text())["accuracy"]
    there = files.checksums(exported)
    assert there.pop("assets.extra/manifest.json")
    assert manifest["sha256"] == there
    assert "saved_model.pb" in manifest["sha256"]


def test_exporting_again_replaces_the_export(run, exported):
    before = (exported / "assets.extra" / "manifest.json").stat().st_ino
    assert export.export(run) == exported
    assert (exported / "assets.extra" / "manifest.json").stat().st_ino != before
    assert not [path for path in run.path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_loss_of_all_that_is_allowed_is_allowed(precision):
    allowed, images = export.ALLOWED_DROP[precision], 10_000
    drop = round(allowed * images)
    for right in range(drop, images):
        assert export._lost(right / images, (right - drop) / images) <= allowed
        assert export._lost((right + 1) / images, (right - drop) / images) > allowed


def test_a_precision_is_judged_by_the_images_that_are_named(copied, data):
    """And what `evaluate` found on others stays as it is."""

    def said(name: str, turn: int) -> dict:
        records = data.test.records.map(lambda image, label: (image, (label + turn) % 3))
        test = dataclasses.replace(data.test, records=records)
        export.export(copied, "bf16", dataclasses.replace(data, name=name, test=test))
        return json.loads((copied.export / "assets.extra" / "manifest.json").read_text())

    before = copied.evaluation.read_text()
    accuracy = json.loads(before)["accuracy"]
    other, own = said("other", 1), said(data.name, 0)
    assert other["precision_check"]["fp32_accuracy"] <= 1 - accuracy
    assert own["precision_check"]["fp32_accuracy"] == accuracy
    assert other["metrics"] == own["metrics"] == {"split": "test", **json.loads(before)}
    assert copied.evaluation.read_text() == before
