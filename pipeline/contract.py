"""What the exported model promises its callers, and a real call of each of its signatures.

The calls are made with tensorflow-serving-api's stubs: the project's client has no Classify and no
embedding, and the gate should not depend on one client's view of the answers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    model_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tfs_client import Signature, TensorSpec

from pipeline.config import MODEL_NAME

TOP = 5
TIMEOUT = 60.0
JUNK = b"not an image"
_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))

Answers = dict[str, dict[str, np.ndarray]]  # signature -> output -> array


def promised(classes: int) -> dict[str, Signature]:
    """The signatures of a model of so many classes, as GetModelMetadata shows them."""
    predict, top = "tensorflow/serving/predict", min(TOP, classes)
    strings, valid = TensorSpec("bytes", (-1,)), TensorSpec("bool", (-1,))
    labels = {
        "classes": TensorSpec("bytes", (-1, top)),
        "scores": TensorSpec("float32", (-1, top)),
    }
    answer = labels | {"probabilities": TensorSpec("float32", (-1, classes)), "valid": valid}
    images = TensorSpec("uint8", (-1, -1, -1, 3))
    embedding = {"embedding": TensorSpec("float32", (-1, 1024)), "valid": valid}
    return {
        "serving_default": Signature(predict, {"image_bytes": strings}, answer),
        "predict_images": Signature(predict, {"images": images}, answer),
        "classify": Signature("tensorflow/serving/classify", {"inputs": strings}, labels),
        "embed": Signature(predict, {"image_bytes": strings}, embedding),
    }


def broken_promises(wanted: dict[str, Signature], found: dict[str, Signature]) -> list[str]:
    """How the signatures found differ from those wanted; further signatures are not looked at."""
    return [text for name in wanted for text in _differences(name, wanted[name], found.get(name))]


def _differences(name: str, wanted: Signature, found: Signature | None) -> Iterator[str]:
    if found is None:
        yield f"signature {name} is missing"
        return
    if found.method != wanted.method:
        yield f"signature {name} has method {found.method}, not {wanted.method}"
    for kind in ("inputs", "outputs"):
        promises, there = getattr(wanted, kind), getattr(found, kind)
        for tensor in sorted(promises.keys() | there.keys()):
            if promises.get(tensor) != there.get(tensor):
                yield (
                    f"signature {name}: {kind[:-1]} {tensor} is {_spec(there.get(tensor))}, "
                    f"not {_spec(promises.get(tensor))}"
                )


def _spec(spec: TensorSpec | None) -> str:
    if spec is None:
        return "absent"
    sizes = "of any rank" if spec.shape is None else list(spec.shape)
    return f"{'string' if spec.dtype == 'bytes' else spec.dtype} {sizes}"


@dataclass(frozen=True)
class Pictures:
    """Images to ask about, each as a file and as the pixels in it.

    Attributes:
        encoded: JPEG or PNG.
        pixels: uint8 [H,W,3] each.
    """

    encoded: tuple[bytes, ...]
    pixels: tuple[np.ndarray, ...]


def ask_server(address: str, pictures: Pictures) -> Answers:
    """Every signature's answers over gRPC; for encoded images the last row is that of JUNK.

    Raises:
        grpc.RpcError: a request failed, or took longer than a minute.
    """
    encoded = [*pictures.encoded, JUNK]
    with grpc.insecure_channel(address, options=_OPTIONS) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        by_pixels = [
            _predict(stub, "predict_images", "images", image[np.newaxis])
            for image in pictures.pixels
        ]
        return {
            "serving_default": _predict(stub, "serving_default", "image_bytes", encoded),
            "predict_images": _joined(by_pixels),
            "classify": _classify(stub, encoded),
            "embed": _predict(stub, "embed", "image_bytes", encoded),
        }


def ask_here(model, pictures: Pictures) -> Answers:
    """The same of a SavedModel that was loaded into this process."""
    encoded = tf.constant([*pictures.encoded, JUNK])
    examples = tf.constant([_example(image).SerializeToString() for image in encoded.numpy()])

    def call(signature: str, value: tf.Tensor) -> dict[str, np.ndarray]:
        outputs = model.signatures[signature](value)
        return {name: output.numpy() for name, output in outputs.items()}

    by_pixels = [call("predict_images", tf.constant(x[np.newaxis])) for x in pictures.pixels]
    return {
        "serving_default": call("serving_default", encoded),
        "predict_images": _joined(by_pixels),
        "classify": call("classify", examples),
        "embed": call("embed", encoded),
    }


def _predict(stub, signature: str, name: str, value) -> dict[str, np.ndarray]:
    request = predict_pb2.PredictRequest(
        model_spec=model_pb2.ModelSpec(name=MODEL_NAME, signature_name=signature),
        inputs={name: tf.make_tensor_proto(value)},
    )
    response = stub.Predict(request, timeout=TIMEOUT)
    return {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}


def _classify(stub, encoded: Sequence[bytes]) -> dict[str, np.ndarray]:
    request = classification_pb2.ClassificationRequest(
        model_spec=model_pb2.ModelSpec(name=MODEL_NAME, signature_name="classify")
    )
    request.input.example_list.examples.extend(map(_example, encoded))
    rows = stub.Classify(request, timeout=TIMEOUT).result.classifications
    return {
        "classes": np.array([[c.label.encode() for c in row.classes] for row in rows], object),
        "scores": np.array([[c.score for c in row.classes] for row in rows], np.float32),
    }


def _example(encoded: bytes) -> tf.train.Example:
    value = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    return tf.train.Example(features=tf.train.Features(feature={"image/encoded": value}))


def _joined(answers: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
