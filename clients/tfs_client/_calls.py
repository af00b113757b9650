"""Each method of the API once: what is sent, and what its answer means. Nothing here waits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from tfs_client import _images, _tensors, _wire, tfs_pb2
from tfs_client._errors import Asked, InvalidImageError, TFSError
from tfs_client._results import (
    Classification,
    Label,
    Metadata,
    Prediction,
    Regression,
    Signature,
    TensorSpec,
    VersionStatus,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Result = TypeVar("Result")
Feature = str | bytes | int | float | Sequence[str | bytes] | Sequence[float]
"""A feature of a tf.Example: one value or a sequence, of strings, whole numbers or floats."""
Example = Mapping[str, Feature]
"""A tf.Example: features by name."""

_PREDICTION = "/tensorflow.serving.PredictionService/"
_MODEL = "/tensorflow.serving.ModelService/"
METHODS = {
    "classify": "tensorflow/serving/classify",
    "regress": "tensorflow/serving/regress",
}


@dataclass  # frozen, it would take four times as long to make
class Call(Generic[Result]):
    """One request.

    Attributes:
        method: gRPC's path.
        asked: what for, as errors tell it.
        request: the message's bytes.
        response: the type of the answer.
        read: an answer -> what the caller gets.
    """

    method: str
    asked: Asked
    request: bytes
    response: Any
    read: Callable[[Any], Result]


def _spec(asked: Asked) -> tfs_pb2.ModelSpec:
    spec = tfs_pb2.ModelSpec(name=asked.model, signature_name=asked.signature)
    if isinstance(asked.version, str):
        spec.version_label = asked.version
    elif asked.version is not None:
        spec.version.value = asked.version
    return spec


@functools.lru_cache(maxsize=1024)
def _spec_bytes(asked: Asked) -> bytes:
    return _spec(asked).SerializeToString()


def predict(
    asked: Asked, inputs: Mapping[str, ArrayLike], outputs: Sequence[str]
) -> Call[Prediction]:
    """Any signature, numpy in and out."""
    if isinstance(outputs, str):
        raise TypeError(f"outputs is the text {outputs!r}: it must be a list of names")
    _check_named("inputs", inputs)
    tensors = {name: _to_proto(name, value) for name, value in inputs.items()}
    return _predict(asked, tensors, outputs, _prediction)


def _to_proto(name: str, value: ArrayLike) -> _wire.Pieces:
    try:
        return _tensors.to_proto(_tensors.as_array(value))
    except TypeError as error:
        raise TypeError(f"input {name!r}: {error}") from error
    except ValueError as error:
        raise ValueError(f"input {name!r}: {error}") from error


def _check_named(what: str, values: Any) -> None:
    named = isinstance(values, (dict, Mapping))
    if not named or [name for name in values if not isinstance(name, str)]:
        raise TypeError(f"{what} must be a dict by name, not a {type(values).__name__}")


def _predict(
    asked: Asked,
    tensors: Mapping[str, _wire.Pieces],
    outputs: Sequence[str],
    read: Callable[[Any], Result],
) -> Call[Result]:
    request = _wire.predict_request(_spec_bytes(asked), tensors, outputs)
    return Call(_PREDICTION + "Predict", asked, request, tfs_pb2.PredictResponse, read)


def _prediction(response: Any) -> Prediction:
    outputs = {key: _tensors.from_proto(proto) for key, proto in response.outputs.items()}
    spec = response.model_spec
    return Prediction(outputs, spec.name, spec.version.value)


def classify(
    model: str, version: int | str | None, batch: list[_images.Prepared]
) -> Call[list[Classification | InvalidImageError]]:
    """One request with images of one kind; an error in the place of what could not be decoded."""
    signature, name, tensor = _images.to_input(batch)

    def read(response: Any) -> list[Classification | InvalidImageError]:
        answer = _prediction(response)
        rows = zip(
            batch,
            answer["classes"].tolist(),
            answer["scores"].tolist(),
            answer["valid"].tolist(),
            strict=True,
        )
        return [
            Classification(_labels(classes, scores), answer.model, answer.version, image.position)
            if valid
            else _images.undecodable(image)
            for image, classes, scores, valid in rows
        ]

    asked = Asked(model, version, signature)
    return _predict(asked, {name: tensor}, ("classes", "scores", "valid"), read)


def _labels(classes: list[bytes], scores: list[float]) -> tuple[Label, ...]:
    return tuple(
        Label(name.decode(errors="replace"), score)
        for name, score in zip(classes, scores, strict=True)
    )


def regress(asked: Asked, examples: Iterable[Example]) -> Call[Regression]:
    """A value for each example."""
    request = tfs_pb2.RegressionRequest(model_spec=_spec(asked), input=_input(examples))

    def read(response: Any) -> Regression:
        spec = response.model_spec
        return Regression(_values(response.result), spec.name, spec.version.value)

    return Call(
        _PREDICTION + "Regress",
        asked,
        request.SerializeToString(),
        tfs_pb2.RegressionResponse,
        read,
    )


def _values(result: Any) -> tuple[float, ...]:
    return tuple(regression.value for regression in result.regressions)


def multi_inference(
    asked: Asked,
    examples: Iterable[Example],
    tasks: Mapping[str, Literal["classify", "regress"]],
) -> Call[dict[str, list[Classification] | Regression]]:
    """Several signatures of one model on the same examples."""
    _check_named("tasks", tasks)
    for signature, method in tasks.items():
        if method not in METHODS:
            raise ValueError(f"task {signature!r} is {method!r}: it must be classify or regress")
    request = tfs_pb2.MultiInferenceRequest(
        tasks=[
            tfs_pb2.InferenceTask(
                model_spec=_spec(Asked(asked.model, asked.version, signature)),
                method_name=METHODS[method],
            )
            for signature, method in tasks.items()
        ],
        input=_input(examples),
    )

    def read(response: Any) -> dict[str, list[Classification] | Regression]:
        return {
            signature: _inferred(result)
            for signature, result in zip(tasks, response.results, strict=True)
        }

    return Call(
        _PREDICTION + "MultiInference",
        asked,
        request.SerializeToString(),
        tfs_pb2.MultiInferenceResponse,
        read,
    )


def _inferred(result: Any) -> list[Classification] | Regression:
    model, version = result.model_spec.name, result.model_spec.version.value
    if result.WhichOneof("result") == "regression_result":
        return Regression(_values(result.regression_result), model, version)
    return [
        Classification(
            tuple(Label(found.label, found.score) for found in row.classes),
            model,
            version,
            position,
        )
        for position, row in enumerate(result.classification_result.classifications)
    ]


def _input(examples: Iterable[Example]) -> tfs_pb2.Input:
    if isinstance(examples, Mapping):
        raise TypeError("examples is one example: give a list of them")
    examples = list(examples)
    for example in examples:
        _check_named("each of the examples", example)
    found = [
        tfs_pb2.Example(
            features=tfs_pb2.Features(
                feature={name: _feature(name, value) for name, value in example.items()}
            )
        )
        for example in examples
    ]
    return tfs_pb2.Input(example_list=tfs_pb2.ExampleList(examples=found))


def _feature(name: str, value: Any) -> tfs_pb2.Feature:
    array = _tensors.plain_array(value)
    values = array.reshape(-1).tolist()
    if array.dtype.kind in "SUO" and all(isinstance(item, (str, bytes)) for item in values):
        encoded = [item.encode() if isinstance(item, str) else item for item in values]
        return tfs_pb2.Feature(bytes_list=tfs_pb2.BytesList(value=encoded))
    if array.dtype.kind in "iub":
        return tfs_pb2.Feature(int64_list=tfs_pb2.Int64List(value=map(int, values)))
    if array.dtype.kind == "f":
        return tfs_pb2.Feature(float_list=tfs_pb2.FloatList(value=values))
    raise TypeError(f"feature {name!r}: {array.dtype} is neither strings, whole numbers nor floats")


def status(asked: Asked) -> Call[list[VersionStatus]]:
    """The model's versions, highest first."""
    request = tfs_pb2.GetModelStatusRequest(model_spec=_spec(asked))

    def read(response: Any) -> list[VersionStatus]:
        return [
            VersionStatus(
                status.version,
                tfs_pb2.ModelVersionStatus.State.Name(status.state),
                status.status.error_message,
            )
            for status in response.model_version_status
        ]

    return Call(
        _MODEL + "GetModelStatus",
        asked,
        request.SerializeToString(),
        tfs_pb2.GetModelStatusResponse,
        read,
    )


def metadata(asked: Asked) -> Call[Metadata]:
    """The model's signatures."""
    request = tfs_pb2.GetModelMetadataRequest(
        model_spec=_spec(asked), metadata_field=["signature_def"]
    )

    def read(response: Any) -> Metadata:
        signatures = tfs_pb2.SignatureDefMap.FromString(response.metadata["signature_def"].value)
        found = {
            name: Signature(
                definition.method_name, _specs(definition.inputs), _specs(definition.outputs)
            )
            for name, definition in sorted(signatures.signature_def.items())
            if definition.method_name  # a graph's initialiser is listed too, without one
        }
        return Metadata(found, response.model_spec.name, response.model_spec.version.value)

    return Call(
        _PREDICTION + "GetModelMetadata",
        asked,
        request.SerializeToString(),
        tfs_pb2.GetModelMetadataResponse,
        read,
    )


def _specs(infos: Any) -> dict[str, TensorSpec]:
    return {name: _spec_of(info) for name, info in sorted(infos.items())}


def _spec_of(info: tfs_pb2.TensorInfo) -> TensorSpec:
    shape = info.tensor_shape
    sizes = None if shape.unknown_rank else tuple(dim.size for dim in shape.dim)
    return TensorSpec(_tensors.dtype_name(info.dtype), sizes)


def reload_config(asked: Asked, config: str) -> Call[None]:
    """Another models.config, as text."""
    from google.protobuf import text_format  # nothing else needs it

    try:
        parsed = text_format.Parse(config, tfs_pb2.ModelServerConfig())
    except text_format.ParseError as error:
        raise TFSError(f"this is not a models.config: {error}") from error
    request = tfs_pb2.ReloadConfigRequest(config=parsed)
    return Call(
        _MODEL + "HandleReloadConfigRequest",
        asked,
        request.SerializeToString(),
        tfs_pb2.ReloadConfigResponse,
        lambda _: None,
    )
