"""TensorFlow Serving's gRPC services: decode a request, call the engine, encode the answer."""

import functools
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving import engine, models_config, tensors
from serving.engine import Label, Servable
from serving.errors import Code, ConfigError, ServingError, invalid_argument, translate
from serving.metrics import Metrics
from serving.repository import Repository, Version
from serving.workers import Workers, aside, received

log = logging.getLogger(__name__)

SIGNATURE_DEF = "signature_def"
# Threads beyond the limit of calls: for those that come slowly, and to tell that it is reached.
SPARE_THREADS = 64
MAX_MESSAGE_BYTES = 1024  # of an error
# How long a call without a deadline waits for the models of a new configuration.
RELOAD_SECONDS = 300.0
_State = get_model_status_pb2.ModelVersionStatus.State

AccessLog = Callable[..., None]


@dataclass(frozen=True)
class Options:
    """How the API is offered.

    Attributes:
        port: 0 for a free one.
        socket_path: of a UNIX socket to answer on as well; empty for none.
        max_calls: under way at a time.
        tensor_content: pack the numbers of answers in `tensor_content`.
        health: offer grpc.health.v1.
        credentials: TLS; None for plain text.
        channel_arguments: gRPC's own, by name.
        access_log: called once a request.
    """

    port: int = 0
    socket_path: str = ""
    max_calls: int = 96
    tensor_content: bool = False
    health: bool = False
    credentials: grpc.ServerCredentials | None = None
    channel_arguments: Sequence[tuple[str, int | str]] = ()
    access_log: AccessLog | None = None


def check_port(port: int, flag: str) -> None:
    """See before models are loaded whether the port can be had.

    Raises:
        ConfigError: it is in use.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise _port_in_use(port, flag) from error


def start_server(
    repository: Repository,
    metrics: Metrics,
    options: Options = Options(),
) -> tuple[grpc.Server, int]:
    """Start to answer on all interfaces; returns the server and its port.

    Raises:
        ConfigError: the port is in use.
    """
    threads = options.max_calls + SPARE_THREADS
    server = grpc.server(
        Workers(threads),  # type: ignore[arg-type] # all that is asked of it is to submit
        options=(
            *options.channel_arguments,  # first: of two with one name, gRPC takes the first
            ("grpc.so_reuseport", 0),  # a second server on the port is a mistake
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ),
    )
    calls = _Calls(options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(repository, metrics, calls, options.tensor_content), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(
        ModelService(repository, calls), server
    )
    if options.health:
        servicer = health.HealthServicer()
        servicer.set("", health_pb2.HealthCheckResponse.SERVING)  # as TensorFlow Serving: for ever
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    bound = _listen(server, options)
    server.start()
    return server, bound


def _listen(server: grpc.Server, options: Options) -> int:
    address = f"0.0.0.0:{options.port}"
    try:
        if options.socket_path:
            _add_port(server, f"unix:{options.socket_path}", options)
        return _add_port(server, address, options)
    except RuntimeError as error:  # gRPC's says no more than that it failed
        check_port(options.port, "--port")
        raise ConfigError(
            "cannot listen: mend --ssl_config_file or --grpc_socket_path, whichever is given"
        ) from error


def _add_port(server: grpc.Server, address: str, options: Options) -> int:
    if options.credentials:
        return server.add_secure_port(address, options.credentials)
    return server.add_insecure_port(address)


def _port_in_use(port: int, flag: str) -> ConfigError:
    return ConfigError(f"port {port} is in use: choose another with {flag}")


class _Calls:
    """The calls under way: their limit, and the access log."""

    def __init__(self, options: Options) -> None:
        self._limit = options.max_calls
        self._free = threading.BoundedSemaphore(options.max_calls)
        self._access_log = options.access_log

    def run(self, method: Callable[[], Message], context: grpc.ServicerContext, name: str):
        """A method's answer, or the gRPC status of what it raised."""
        started, status = time.perf_counter(), "OK"
        try:
            return self._run_within_limit(method)
        except Exception as error:  # the one boundary: whatever a model raises becomes a status
            failure = translate(error)
            status = failure.code.name
            if failure.code is Code.INTERNAL:
                log.exception("%s failed", name)
            context.abort(failure.code.value.grpc, _shortened(failure.message))
        finally:
            if self._access_log:
                seconds = time.perf_counter() - started
                self._access_log(
                    entrypoint="GRPC",
                    method=name,
                    peer=context.peer(),
                    status=status,
                    seconds=seconds,
                )

    def _run_within_limit(self, method: Callable[[], Message]) -> Message:
        if not self._free.acquire(blocking=False):
            raise ServingError(
                Code.RESOURCE_EXHAUSTED,
                f"Server Threadpool Exhausted: {self._limit} calls are under way, the limit of "
                "--grpc_max_threads",
            )
        try:
            return method()
        finally:
            self._free.release()


def _shortened(message: str) -> str:
    """As grpc_status_util.cc does: gRPC takes no more than a few kilobytes of a message."""
    kept = message.encode()[:MAX_MESSAGE_BYTES].decode(errors="ignore")
    return message if kept == message else f"{kept}...TRUNCATED"


def _answering(method: Callable[..., Message]) -> Callable[..., Message]:
    """A gRPC method of one that takes the request and the deadline by time.monotonic()."""

    @functools.wraps(method)
    def answer(self, request: Message, context: grpc.ServicerContext) -> Message:
        received()
        remaining = context.time_remaining()  # 9.2e18 s where the caller has set none
        deadline = time.monotonic() + remaining if remaining < threading.TIMEOUT_MAX else None
        return self.calls.run(lambda: method(self, request, deadline), context, method.__name__)

    return answer


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """tensorflow_serving/apis/prediction_service.proto"""

    def __init__(
        self, repository: Repository, metrics: Metrics, calls: _Calls, tensor_content: bool
    ) -> None:
        self._repository = repository
        self._metrics = metrics
        self.calls = calls
        self._tensor_content = tensor_content

    @_answering
    def Predict(self, request: predict_pb2.PredictRequest, deadline: float | None) -> Message:
        spec = request.model_spec
        with self._metrics.request(spec.name, "Predict", "GRPC") as call:
            with _servable(self._repository, request) as servable:
                call.version = servable.version
                outputs = servable.predict(
                    request.inputs, spec.signature_name, request.output_filter, deadline
                )
            response = predict_pb2.PredictResponse(model_spec=_answered_by(servable, spec))
            for name, array in outputs.items():
                response.outputs[name].CopyFrom(tensors.to_proto(array, self._tensor_content))
            return response

    @_answering
    def Classify(
        self, request: classification_pb2.ClassificationRequest, deadline: float | None
    ) -> Message:
        spec = request.model_spec
        with self._metrics.request(spec.name, "Classify", "GRPC") as call:
            with _servable(self._repository, request) as servable:
                call.version = servable.version
                examples = tensors.examples(request.input)
                rows = servable.classify(examples, spec.signature_name, deadline)
            return classification_pb2.ClassificationResponse(
                model_spec=_answered_by(servable, spec), result=_classifications(rows)
            )

    @_answering
    def Regress(self, request: regression_pb2.RegressionRequest, deadline: float | None) -> Message:
        spec = request.model_spec
        with self._metrics.request(spec.name, "Regress", "GRPC") as call:
            with _servable(self._repository, request) as servable:
                call.version = servable.version
                examples = tensors.examples(request.input)
                values = servable.regress(examples, spec.signature_name, deadline)
            return regression_pb2.RegressionResponse(
                model_spec=_answered_by(servable, spec), result=_regressions(values)
            )

    @_answering
    def MultiInference(
        self, request: inference_pb2.MultiInferenceRequest, deadline: float | None
    ) -> Message:
        if not request.tasks or not request.tasks[0].HasField("model_spec"):
            raise invalid_argument("ModelSpec has no name specified.")
        with _servable(self._repository, request.tasks[0]) as servable:
            answers = servable.multi_inference(request, deadline)
        response = inference_pb2.MultiInferenceResponse()
        for task, answer in zip(request.tasks, answers, strict=True):
            result = response.results.add(model_spec=_answered_by(servable, task.model_spec))
            if task.method_name == engine.CLASSIFY:
                result.classification_result.CopyFrom(_classifications(answer))
            else:
                result.regression_result.CopyFrom(_regressions(answer))
        return response

    @_answering
    def GetModelMetadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, _: float | None
    ) -> Message:
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid_argument(
                "GetModelMetadataRequest must specify at least one metadata_field"
            )
        for field in request.metadata_field:
            if field != SIGNATURE_DEF:
                raise invalid_argument(f"Metadata field {field} is not supported")
        with _servable(self._repository, request) as servable:
            return metadata_message(servable)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """tensorflow_serving/apis/model_service.proto"""

    def __init__(self, repository: Repository, calls: _Calls) -> None:
        self._repository = repository
        self.calls = calls

    @_answering
    def GetModelStatus(
        self, request: get_model_status_pb2.GetModelStatusRequest, _: float | None
    ) -> Message:
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        spec = request.model_spec
        return status_message(self._repository.status(spec.name, _version(spec)))

    @_answering
    def HandleReloadConfigRequest(
        self, request: model_management_pb2.ReloadConfigRequest, deadline: float | None
    ) -> Message:
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid_argument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
                "ModelConfigList is currently supported"
            )
        models = models_config.from_messages(request.config.model_config_list.config)
        with aside():
            self._repository.reload(models, deadline or time.monotonic() + RELOAD_SECONDS)
        response = model_management_pb2.ReloadConfigResponse()
        response.status.SetInParent()
        for name in request.metric_names:  # of TensorFlow's own counters; this server has none
            response.metric.add(name=name)
        return response


def _servable(repository: Repository, request):
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    spec = request.model_spec
    if not spec.name:
        raise invalid_argument("ModelSpec has no name specified.")
    return repository.servable(spec.name, _version(spec), _label(spec))


def _version(spec: model_pb2.ModelSpec) -> int | None:
    return spec.version.value if spec.HasField("version") else None


def _label(spec: model_pb2.ModelSpec) -> str | None:
    return spec.version_label if spec.WhichOneof("version_choice") == "version_label" else None


def _spec(servable: Servable, signature: str = "") -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=servable.name, signature_name=signature)
    spec.version.value = servable.version
    return spec


def _answered_by(servable: Servable, asked: model_pb2.ModelSpec) -> model_pb2.ModelSpec:
    return _spec(servable, asked.signature_name or engine.DEFAULT_SIGNATURE)


def _classifications(rows: list[list[Label]]) -> classification_pb2.ClassificationResult:
    result = classification_pb2.ClassificationResult()
    for labels in rows:
        row = result.classifications.add()
        for label in labels:
            row.classes.add(label=label.name, score=label.score)
    return result


def _regressions(values: list[float]) -> regression_pb2.RegressionResult:
    result = regression_pb2.RegressionResult()
    for value in values:
        result.regressions.add(value=value)
    return result


def metadata_message(servable: Servable) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """A version's signatures."""
    response = get_model_metadata_pb2.GetModelMetadataResponse(model_spec=_spec(servable))
    signatures = get_model_metadata_pb2.SignatureDefMap(
        signature_def=servable.signature_definitions()
    )
    response.metadata[SIGNATURE_DEF].Pack(signatures)
    return response


def status_message(versions: list[Version]) -> get_model_status_pb2.GetModelStatusResponse:
    """The state of each version, in the order given."""
    return get_model_status_pb2.GetModelStatusResponse(
        model_version_status=[_version_status(version) for version in versions]
    )


def _version_status(version: Version) -> get_model_status_pb2.ModelVersionStatus:
    status = get_model_status_pb2.ModelVersionStatus(
        version=version.number, state=_State.Value(version.state.value)
    )
    status.status.SetInParent()
    if version.error:
        status.status.error_code = version.error.code.value.number
        status.status.error_message = version.error.message
    return status
