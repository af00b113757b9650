"""TensorFlow Serving's gRPC services: decode a request, call the engine, encode the answer."""

import functools
import logging
import socket
from collections.abc import Callable
from concurrent import futures

import grpc
from google.protobuf.message import Message
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    input_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving import engine, tensors
from serving.engine import Servable
from serving.errors import Code, ConfigError, invalid_argument, translate
from serving.repository import Repository, Version

log = logging.getLogger(__name__)

SIGNATURE_DEF = "signature_def"
_State = get_model_status_pb2.ModelVersionStatus.State


def check_port(port: int) -> None:
    """See before models are loaded whether the port can be had.

    Raises:
        ConfigError: it is in use.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise _port_in_use(port) from error


def start_server(
    repository: Repository, port: int, max_threads: int, tensor_content: bool = False
) -> tuple[grpc.Server, int]:
    """Start to answer on all interfaces; returns the server and its port.

    Args:
        repository: of loaded models.
        port: 0 for a free one.
        max_threads: requests under way at a time.
        tensor_content: pack the numbers of answers in `tensor_content`.

    Raises:
        ConfigError: the port is in use.
    """
    server = grpc.server(
        futures.ThreadPoolExecutor(max_threads, thread_name_prefix="grpc"),
        options=(
            ("grpc.so_reuseport", 0),  # a second server on the port is a mistake
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ),
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(repository, tensor_content), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(repository), server)
    try:
        bound = server.add_insecure_port(f"0.0.0.0:{port}")
    except RuntimeError as error:
        raise _port_in_use(port) from error
    server.start()
    return server, bound


def _port_in_use(port: int) -> ConfigError:
    return ConfigError(f"port {port} is in use: choose another with --port")


def _answering(method: Callable[..., Message]) -> Callable[..., Message]:
    """Turn what a method raises into a gRPC status."""

    @functools.wraps(method)
    def answer(self, request: Message, context: grpc.ServicerContext) -> Message:
        try:
            return method(self, request)
        except Exception as error:  # the one boundary: whatever a model raises becomes a status
            failure = translate(error)
            if failure.code is Code.INTERNAL:
                log.exception("%s failed", method.__name__)
            context.abort(failure.code.value.grpc, failure.message)

    return answer


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """tensorflow_serving/apis/prediction_service.proto"""

    def __init__(self, repository: Repository, tensor_content: bool) -> None:
        self._repository = repository
        self._tensor_content = tensor_content

    @_answering
    def Predict(self, request: predict_pb2.PredictRequest) -> Message:
        with self._servable(request) as servable:
            outputs = servable.predict(
                {name: tensors.from_proto(name, proto) for name, proto in request.inputs.items()},
                request.model_spec.signature_name,
                request.output_filter,
            )
        response = predict_pb2.PredictResponse(model_spec=_answered_by(servable, request))
        for name, array in outputs.items():
            response.outputs[name].CopyFrom(tensors.to_proto(array, self._tensor_content))
        return response

    @_answering
    def Classify(self, request: classification_pb2.ClassificationRequest) -> Message:
        with self._servable(request) as servable:
            rows = servable.classify(_examples(request.input), request.model_spec.signature_name)
        response = classification_pb2.ClassificationResponse(
            model_spec=_answered_by(servable, request)
        )
        for labels in rows:
            row = response.result.classifications.add()
            for label in labels:
                row.classes.add(label=label.name, score=label.score)
        return response

    @_answering
    def GetModelMetadata(self, request: get_model_metadata_pb2.GetModelMetadataRequest) -> Message:
        if not request.metadata_field:
            raise invalid_argument(
                "GetModelMetadataRequest must specify at least one metadata_field"
            )
        for field in request.metadata_field:
            if field != SIGNATURE_DEF:
                raise invalid_argument(f"Metadata field {field} is not supported")
        with self._servable(request) as servable:
            definitions = servable.signature_definitions()
        response = get_model_metadata_pb2.GetModelMetadataResponse(
            model_spec=_spec(servable.name, servable.version)
        )
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=definitions)
        response.metadata[SIGNATURE_DEF].Pack(signatures)
        return response

    def _servable(self, request):
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        spec = request.model_spec
        return self._repository.servable(spec.name, _version(spec), _label(spec))


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """tensorflow_serving/apis/model_service.proto"""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    @_answering
    def GetModelStatus(self, request: get_model_status_pb2.GetModelStatusRequest) -> Message:
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        spec = request.model_spec
        versions = self._repository.status(spec.name, _version(spec))
        return get_model_status_pb2.GetModelStatusResponse(
            model_version_status=[_version_status(version) for version in versions]
        )


def _version(spec: model_pb2.ModelSpec) -> int | None:
    return spec.version.value if spec.HasField("version") else None


def _label(spec: model_pb2.ModelSpec) -> str | None:
    return spec.version_label if spec.WhichOneof("version_choice") == "version_label" else None


def _spec(name: str, version: int, signature: str = "") -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=name, signature_name=signature)
    spec.version.value = version
    return spec


def _answered_by(servable: Servable, request) -> model_pb2.ModelSpec:
    signature = request.model_spec.signature_name or engine.DEFAULT_SIGNATURE
    return _spec(servable.name, servable.version, signature)


def _examples(given: input_pb2.Input) -> list[bytes]:
    """Serialized tf.Examples; a context is merged into each, which its own features override."""
    if given.WhichOneof("kind") != "example_list_with_context":
        return [example.SerializeToString() for example in given.example_list.examples]
    merged = []
    for example in given.example_list_with_context.examples:
        whole = type(example)()
        whole.CopyFrom(given.example_list_with_context.context)
        for key, feature in example.features.feature.items():
            whole.features.feature[key].CopyFrom(feature)
        merged.append(whole.SerializeToString())
    return merged


def _version_status(version: Version) -> get_model_status_pb2.ModelVersionStatus:
    status = get_model_status_pb2.ModelVersionStatus(
        version=version.number, state=_State.Value(version.state.value)
    )
    if version.error:
        status.status.error_code = version.error.code.value.number
        status.status.error_message = version.error.message
    return status
