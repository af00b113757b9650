"""A trained network -> a SavedModel that TensorFlow Serving runs as it is.

    python -m pipeline export [--run runs/…] [--precision bf16|int8]

writes `export/` in the run folder: graph of constants, signatures, warm-up requests and manifest.
Ten seconds; a precision other than fp32 is measured on the test split before it is let through,
which takes as long as `evaluate`, or less.

    signature        inputs                      outputs
    serving_default  image_bytes string [N]      classes string [N,k], scores float32 [N,k],
                                                 probabilities float32 [N,C], valid bool [N]
    predict_images   images uint8 [N,H,W,3]      the same
    classify         inputs string [N]           classes, scores
    embed            image_bytes string [N]      embedding float32 [N,1024], valid

`image_bytes` are JPEG, PNG, GIF (first frame) or BMP; `inputs` tf.Examples with `image/encoded`.
k = min(5, C), best first. A row whose image cannot be decoded has `valid` false, empty class names
and zeros elsewhere.
"""

import dataclasses
import json
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    model_pb2,
    predict_pb2,
    prediction_log_pb2,
)

from pipeline import dataset, evaluate, files, inference_graph, metrics, preprocessing
from pipeline.config import MODEL_NAME
from pipeline.dataset import Dataset
from pipeline.errors import PipelineError, choice, reason
from pipeline.inference_graph import Graph
from pipeline.run import Run

TOP = 5
CLASSIFY_METHOD = "tensorflow/serving/classify"
EXTRA = "assets.extra"
ALLOWED_DROP = {"bf16": 0.002, "int8": 0.005}  # of the accuracy in fp32
CALIBRATION_IMAGES = 512
# allowed_batch_sizes of serving/config/batching.config
WARM_UP_BATCHES = (1, 2, 4, 8, 16, 32)
WARM_UP_SIDE = 16  # of the pictures in it, which the graph brings to the network's size


def export(run: Run, precision: str = "fp32", data: Dataset | None = None) -> Path:
    """Write a run's SavedModel into its folder, in place of an earlier one; returns the folder.

    Args:
        run: a finished run.
        precision: one of `inference_graph.PRECISIONS`.
        data: where the precision is not fp32: what int8 is calibrated on (its training split) and
            what the accuracy is measured on (its test split).

    Raises:
        PipelineError: unknown precision, no data for it, or it costs more than `ALLOWED_DROP`; an
            earlier export then stays.
    """
    if precision not in inference_graph.PRECISIONS:
        raise choice("precision", precision, inference_graph.PRECISIONS)
    graph = _graph(run, precision, data)

    def write(folder: Path) -> None:
        save(graph, run.class_names, run.config.image_size, folder)
        check = _check_precision(run, folder, precision, data) if data else None
        manifest = _manifest(run, folder, precision, check)
        (folder / EXTRA / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")

    files.replace_folder(run.export, write)
    print(f"exported {run.export} in {precision}")
    return run.export


def _graph(run: Run, precision: str, data: Dataset | None) -> Graph:
    network, form = evaluate.load_network(run), (run.config.variant, run.config.stem)
    if precision == "fp32":
        return inference_graph.build(network, *form, precision)
    if data is None:
        raise PipelineError(
            f"precision {precision} must be measured and there are no images: name some with "
            "--dataset, or export in fp32"
        )
    limits = None
    if precision == "int8":
        limits = inference_graph.calibrate(network, *form, _calibration(run, data))
    return inference_graph.build(network, *form, precision, limits)


def _calibration(run: Run, data: Dataset) -> list[tf.Tensor]:
    """Batches of training images, taken evenly: a folder's are in the order of their classes."""
    every = max(1, data.train.size // CALIBRATION_IMAGES)
    some = dataclasses.replace(data.train, records=data.train.records.shard(every, 0))
    return [pixels for pixels, _ in dataset.batches(some, run.config.image_size, batch_size=32)]


def _check_precision(run: Run, folder: Path, precision: str, data: Dataset) -> dict[str, object]:
    """Measure the export itself on the test split; returns what the manifest says of it."""
    expected = evaluate.accuracy(run, data)
    signature = tf.saved_model.load(str(folder)).signatures["predict_images"]
    measured, _ = metrics.measure(
        lambda pixels: tf.math.log(signature(images=pixels)["probabilities"] + 1e-30),
        dataset.batches(data.test, run.config.image_size),
        data.test.size,
        data.class_names,
    )
    print(f"accuracy {measured.accuracy:.4f} in {precision}, {expected:.4f} in fp32")
    allowed, lost = ALLOWED_DROP[precision], _lost(expected, measured.accuracy)
    if lost > allowed:
        raise PipelineError(
            f"{precision} loses {lost * 100:.2f} points of accuracy on {measured.images:,} images "
            f"and {allowed * 100:.1f} are allowed: export in another precision"
        )
    return {
        "accuracy": measured.accuracy,
        "fp32_accuracy": expected,
        "allowed_drop": allowed,
        "images": measured.images,
    }


def _lost(expected: float, accuracy: float) -> float:
    """Rounded, since 0.9039 - 0.9019 is more than 0.002 in floating point."""
    return round(expected - accuracy, 6)


class _Servable(tf.Module):
    """The four signatures over one network."""

    def __init__(
        self,
        network: Graph,
        class_names: tuple[str, ...],
        size: int,
    ) -> None:
        super().__init__(name=MODEL_NAME)
        self._network = network
        self._class_names = class_names
        self._size = size

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def serving_default(self, image_bytes):
        return self._classified(*preprocessing.decode_batch(image_bytes, self._size))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "images")])
    def predict_images(self, images):
        pixels = tf.cond(
            tf.reduce_all(tf.shape(images)[1:3] == self._size),
            lambda: tf.ensure_shape(images, (None, self._size, self._size, 3)),
            lambda: preprocessing.to_pixels(images, self._size),
        )
        return self._classified(pixels, tf.ones_like(pixels[:, 0, 0, 0], tf.bool))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def classify(self, inputs):
        answer = self._classified(*preprocessing.decode_batch(inputs, self._size, _image_in))
        return {name: answer[name] for name in ("classes", "scores")}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def embed(self, image_bytes):
        pixels, valid = preprocessing.decode_batch(image_bytes, self._size)
        embedding = self._run(pixels)["embedding"]
        return {"embedding": _zero_unless(valid, embedding), "valid": valid}

    def _run(self, pixels):
        """The network on any number of rows; convolutions refuse to run on none."""
        rows = tf.shape(pixels)[0]
        some = tf.pad(pixels, [[0, tf.cast(rows == 0, tf.int32)], [0, 0], [0, 0], [0, 0]])
        return {name: output[:rows] for name, output in self._network(some).items()}

    def _classified(self, pixels, valid):
        logits = self._run(pixels)["logits"]
        probabilities = _zero_unless(valid, tf.nn.softmax(logits))
        scores, labels = tf.math.top_k(probabilities, min(TOP, len(self._class_names)))
        names = tf.gather(tf.constant(self._class_names), labels)
        return {
            "classes": tf.where(valid[:, tf.newaxis], names, ""),
            "scores": scores,
            "probabilities": probabilities,
            "valid": valid,
        }


def _image_in(example: tf.Tensor) -> tf.Tensor:
    """The encoded image of a serialized tf.Example; parsed alone, so that it fails alone."""
    feature = tf.io.FixedLenFeature([], tf.string)
    return tf.io.parse_single_example(example, {"image/encoded": feature})["image/encoded"]


def _zero_unless(valid: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    return tf.where(valid[:, tf.newaxis], values, tf.zeros_like(values))


def save(graph: Graph, class_names: tuple[str, ...], size: int, folder: Path) -> None:
    """Write a SavedModel with its warm-up requests into an empty folder, or one yet to be made.

    Args:
        graph: the network.
        class_names: in the order of its logits.
        size: of the images it takes, in pixels a side.
        folder: a version's.
    """
    servable = _Servable(graph, class_names, size)
    signatures = {
        "serving_default": servable.serving_default,
        "predict_images": servable.predict_images,
        "classify": servable.classify,
        "embed": servable.embed,
    }
    try:
        tf.saved_model.save(servable, str(folder), signatures=signatures)
    except tf.errors.OpError as error:  # a full disk
        raise PipelineError(f"cannot write {folder}: {reason(error)}") from error
    _name_classify_method(folder)
    (folder / EXTRA).mkdir()
    _write_warm_up(folder / EXTRA / "tf_serving_warmup_requests")


def _name_classify_method(folder: Path) -> None:
    """TensorFlow 2 saves every signature as a predict method; Classify wants its own."""
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(folder))
    updater.replace_method_name("classify", CLASSIFY_METHOD, tags=["serve"])
    updater.save()


def _write_warm_up(path: Path) -> None:
    """A request per signature and batch size, which a server replays before it is available."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for rows in WARM_UP_BATCHES:
            for log in _warm_up_logs(rows):
                writer.write(log.SerializeToString())


def _warm_up_logs(rows: int) -> Iterator[prediction_log_pb2.PredictionLog]:
    picture = tf.zeros((WARM_UP_SIDE, WARM_UP_SIDE, 3), tf.uint8)
    encoded = tf.io.encode_jpeg(picture).numpy()
    for signature, name, value in (
        ("serving_default", "image_bytes", tf.constant([encoded] * rows)),
        ("predict_images", "images", tf.stack([picture] * rows)),
        ("embed", "image_bytes", tf.constant([encoded] * rows)),
    ):
        request = predict_pb2.PredictRequest(
            model_spec=model_pb2.ModelSpec(name=MODEL_NAME, signature_name=signature),
            inputs={name: tf.make_tensor_proto(value)},
        )
        yield prediction_log_pb2.PredictionLog(
            predict_log=prediction_log_pb2.PredictLog(request=request)
        )
    question = classification_pb2.ClassificationRequest(
        model_spec=model_pb2.ModelSpec(name=MODEL_NAME, signature_name="classify")
    )
    for _ in range(rows):
        features = question.input.example_list.examples.add().features
        features.feature["image/encoded"].bytes_list.value.append(encoded)
    yield prediction_log_pb2.PredictionLog(
        classify_log=prediction_log_pb2.ClassifyLog(request=question)
    )


def _manifest(
    run: Run, folder: Path, precision: str, check: dict[str, object] | None
) -> dict[str, object]:
    """What is in the folder, and where it comes from."""
    metrics = evaluate.recorded(run)
    return {
        "model": MODEL_NAME,
        "run": run.path.name,
        "dataset": run.config.dataset,
        "class_names": run.class_names,
        "preset": run.config.preset,
        "image_size": run.config.image_size,
        "precision": precision,
        "precision_check": check,
        "git_commit": run.git_commit,
        "tensorflow": version("tensorflow"),
        "exported": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "metrics": {"split": "test", **metrics} if metrics else None,
        "sha256": files.checksums(folder),
    }
