"""A trained network -> a SavedModel that TensorFlow Serving runs as it is.

    python -m pipeline export [--run runs/…]

writes `export/` in the run folder: frozen graph, signatures, warm-up requests and manifest. Ten
seconds.

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

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

from pipeline import evaluate, files, preprocessing
from pipeline.config import MODEL_NAME
from pipeline.run import Run

TOP = 5
CLASSIFY_METHOD = "tensorflow/serving/classify"
EXTRA = "assets.extra"


def export(run: Run) -> Path:
    """Write a run's SavedModel into its folder, in place of an earlier one; returns the folder."""
    network = evaluate.load_network(run)
    servable = _Servable(_frozen(network), run.class_names, run.config.image_size)
    files.replace_folder(run.export, lambda folder: _write(servable, run, folder))
    print(f"exported {run.export}")
    return run.export


class _Servable(tf.Module):
    """The four signatures over one frozen network."""

    def __init__(
        self,
        network: Callable[[tf.Tensor], dict[str, tf.Tensor]],
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
        pixels = preprocessing.to_pixels(images, self._size)
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


def _frozen(network) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """The network as a function of constants: nothing to restore at load, no Keras to rebuild."""
    pixels = tf.TensorSpec(network.input.shape, tf.uint8, "pixels")
    concrete = tf.function(lambda x: network(x, training=False)).get_concrete_function(pixels)
    with _without_native_notes():
        constant = convert_variables_to_constants_v2(concrete)
    names = sorted(concrete.structured_outputs)  # the order in which tf.nest flattens a dict
    return lambda x: dict(zip(names, constant(x), strict=True))


@contextlib.contextmanager
def _without_native_notes() -> Iterator[None]:
    """Keep back what C++ writes to stderr and no log level silences, unless something fails."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException:
            notes.seek(0)
            os.write(stderr, notes.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _write(servable: _Servable, run: Run, folder: Path) -> None:
    signatures = {
        "serving_default": servable.serving_default,
        "predict_images": servable.predict_images,
        "classify": servable.classify,
        "embed": servable.embed,
    }
    tf.saved_model.save(servable, str(folder), signatures=signatures)
    _name_classify_method(folder)
    extra = folder / EXTRA
    extra.mkdir()
    _write_warm_up(extra / "tf_serving_warmup_requests", run.config.image_size)
    manifest = _manifest(run, folder)
    (extra / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def _name_classify_method(folder: Path) -> None:
    """TensorFlow 2 saves every signature as a predict method; Classify wants its own."""
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(folder))
    updater.replace_method_name("classify", CLASSIFY_METHOD, tags=["serve"])
    updater.save()


def _write_warm_up(path: Path, size: int) -> None:
    """One request per predict signature, which a server replays before it is available."""
    blank = tf.zeros((size, size, 3), tf.uint8)
    encoded = tf.constant([tf.io.encode_jpeg(blank).numpy()])
    requests = {
        ("serving_default", "image_bytes"): encoded,
        ("predict_images", "images"): blank[tf.newaxis],
        ("embed", "image_bytes"): encoded,
    }
    with tf.io.TFRecordWriter(str(path)) as writer:
        for (signature, name), value in requests.items():
            request = predict_pb2.PredictRequest(
                model_spec=model_pb2.ModelSpec(name=MODEL_NAME, signature_name=signature),
                inputs={name: tf.make_tensor_proto(value)},
            )
            log = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            writer.write(log.SerializeToString())


def _manifest(run: Run, folder: Path) -> dict[str, object]:
    """What is in the folder, and where it comes from."""
    metrics = json.loads(run.evaluation.read_text()) if run.evaluation.exists() else None
    return {
        "model": MODEL_NAME,
        "run": run.path.name,
        "dataset": run.config.dataset,
        "class_names": run.class_names,
        "preset": run.config.preset,
        "image_size": run.config.image_size,
        "git_commit": run.git_commit,
        "tensorflow": version("tensorflow"),
        "exported": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "metrics": {"split": "test", **metrics} if metrics else None,
        "sha256": dict(checksums(folder)),
    }


def checksums(folder: Path) -> Iterator[tuple[str, str]]:
    """(path below the folder, SHA-256) of every file but the manifest, sorted by path."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "manifest.json":
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            yield str(path.relative_to(folder)), digest
