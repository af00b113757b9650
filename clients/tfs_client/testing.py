"""A server for the tests of whoever uses the client: real gRPC, canned answers, no TensorFlow.

    with FakeServer(classify=lambda image: [("cat", 0.9), ("dog", 0.1)]) as server:
        with Client(server.address) as client:
            assert client.classify(b"anything").label == "cat"
            server.fail(grpc.StatusCode.UNAVAILABLE, times=2)
            client.classify(b"anything")  # the client tries again
            assert len(server.requests) == 4

It runs in the test's own process, on a free port of the loopback interface, and ends with the
`with` block.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from numpy.typing import ArrayLike

from tfs_client import _calls, _tensors, tfs_pb2
from tfs_client._results import TensorSpec
from tfs_client._tensors import Array

Labels = Sequence["tuple[str, float]"]
Classify = Callable[[bytes | Array], Labels | None]
"""An encoded image, or pixels [H,W,3] -> classes and scores, best first; None if it is none."""
Predict = Callable[[str, "dict[str, Array]"], Mapping[str, ArrayLike]]
"""A signature's name and its inputs -> its outputs."""
Regress = Callable[["dict[str, list[Any]]"], float]
"""An example's features -> its value."""

_STOP_SECONDS = 5.0


@dataclass(frozen=True)
class Request:
    """A request that the server got.

    Attributes:
        method: the last part of gRPC's path, such as `Predict`.
        message: as it came; `testing.tfs_pb2` has its type.
        metadata: what came with it.
        seconds_left: to the caller's deadline; None for none.
        peer: gRPC's name of the caller's end of the connection.
    """

    method: str
    message: Any
    metadata: dict[str, str | bytes]
    seconds_left: float | None
    peer: str


@dataclass
class _Fault:
    code: grpc.StatusCode | None
    details: str
    delay: float
    times: int


def _cat_or_dog(_: bytes | Array) -> Labels:
    return [("cat", 0.9), ("dog", 0.1)]


@dataclass
class FakeServer:
    """A model server whose model is whatever its functions say.

    Attributes:
        classify: answers `Client.classify`.
        predict: answers `Client.predict`; without it, outputs are the inputs.
        regress: answers `Client.regress`.
        model: the name of its one model.
        versions: that are available; the highest answers.
        labels: version labels.
        host: name or address to listen on.
        port: to listen on; 0 for a free one.
        credentials: TLS; None for plain text.
        options: gRPC's own, such as `grpc.max_connection_age_ms`.
        threads: requests answered at a time.
        requests: all that came so far, the failed ones included.
    """

    classify: Classify = _cat_or_dog
    predict: Predict | None = None
    regress: Regress | None = None
    model: str = "googlenet"
    versions: Sequence[int] = (1,)
    labels: Mapping[str, int] = field(default_factory=dict)
    host: str = "localhost"
    port: int = 0
    credentials: grpc.ServerCredentials | None = None
    options: Sequence[tuple[str, Any]] = ()
    threads: int = 64
    requests: list[Request] = field(default_factory=list)
    _faults: list[_Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _server: grpc.Server | None = None

    @property
    def address(self) -> str:
        """For a client."""
        return f"{self.host}:{self.port}"

    def __enter__(self) -> FakeServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop(_STOP_SECONDS)

    def start(self) -> None:
        """Listen; again after `stop`, on the same port."""
        pool = futures.ThreadPoolExecutor(self.threads, thread_name_prefix="fake-server")
        options = (
            *self.options,
            ("grpc.max_receive_message_length", -1),
            ("grpc.so_reuseport", 0),
        )
        self._server = grpc.server(pool, options=options)
        for service, methods in self._services().items():
            handlers = {name: self._handler(name, *method) for name, method in methods.items()}
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, handlers),)
            )
        address = f"{self.host}:{self.port}"
        if self.credentials:
            self.port = self._server.add_secure_port(address, self.credentials)
        else:
            self.port = self._server.add_insecure_port(address)
        self._server.start()

    def stop(self, grace: float = 0.0) -> None:
        """Hang up; requests under way have `grace` seconds to end."""
        if self._server:
            self._server.stop(grace).wait(grace + _STOP_SECONDS)
            self._server = None

    def fail(
        self,
        code: grpc.StatusCode | None = grpc.StatusCode.UNAVAILABLE,
        details: str = "as the test asked",
        *,
        delay: float = 0.0,
        times: int = 1,
    ) -> None:
        """Have the next requests fail, be late, or both; faults queue up.

        Args:
            code: to fail with; None to answer after all.
            details: gRPC's words.
            delay: seconds before that.
            times: requests that it happens to.
        """
        with self._lock:
            self._faults.append(_Fault(code, details, delay, times))

    def _services(self) -> dict[str, dict[str, tuple[Any, Callable[[Any], Any]]]]:
        return {
            "tensorflow.serving.PredictionService": {
                "Predict": (tfs_pb2.PredictRequest, self._predict),
                "Regress": (tfs_pb2.RegressionRequest, self._regress),
                "MultiInference": (tfs_pb2.MultiInferenceRequest, self._multi_inference),
                "GetModelMetadata": (tfs_pb2.GetModelMetadataRequest, self._metadata),
            },
            "tensorflow.serving.ModelService": {
                "GetModelStatus": (tfs_pb2.GetModelStatusRequest, self._status),
                "HandleReloadConfigRequest": (tfs_pb2.ReloadConfigRequest, self._reload),
            },
        }

    def _handler(
        self, name: str, message: Any, answer: Callable[[Any], Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            metadata = dict(context.invocation_metadata())
            fault = self._arrived(
                Request(name, request, metadata, context.time_remaining(), context.peer())
            )
            if fault:
                time.sleep(fault.delay)
                if fault.code:
                    context.abort(fault.code, fault.details)
            with _status_of_errors(context):
                return answer(request)

        return grpc.unary_unary_rpc_method_handler(
            handle, message.FromString, lambda response: response.SerializeToString()
        )

    def _arrived(self, request: Request) -> _Fault | None:
        with self._lock:
            self.requests.append(request)
            if not self._faults:
                return None
            fault = self._faults[0]
            fault.times -= 1
            if not fault.times:
                self._faults.pop(0)
            return fault

    def _version(self, spec: tfs_pb2.ModelSpec) -> int:
        """The version asked for, in TensorFlow Serving's words where there is none."""
        number = max(self.versions)
        asked = f"Latest({spec.name})"
        if spec.WhichOneof("version_choice") == "version_label":
            if spec.version_label not in self.labels:
                raise _RefusedError(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"Unrecognized servable version label: {spec.version_label}",
                )
            return self.labels[spec.version_label]
        if spec.HasField("version"):
            number = spec.version.value
            asked = f"Specific({spec.name}, {number})"
        if spec.name != self.model or number not in self.versions:
            raise _RefusedError(
                grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {asked}"
            )
        return number

    def _spec(self, asked: tfs_pb2.ModelSpec) -> tfs_pb2.ModelSpec:
        spec = tfs_pb2.ModelSpec(
            name=self.model, signature_name=asked.signature_name or "serving_default"
        )
        spec.version.value = self._version(asked)
        return spec

    def _predict(self, request: tfs_pb2.PredictRequest) -> tfs_pb2.PredictResponse:
        response = tfs_pb2.PredictResponse(model_spec=self._spec(request.model_spec))
        inputs = {name: _tensors.from_proto(proto) for name, proto in request.inputs.items()}
        (name, images), *more = inputs.items()
        if self.predict:
            outputs = dict(self.predict(request.model_spec.signature_name, inputs))
        elif not more and name == SIGNATURES.get(request.model_spec.signature_name, ("",))[0]:
            outputs = self._classified(list(images))
        else:
            outputs = dict(inputs)
        for key in request.output_filter or outputs:
            pieces = _tensors.to_proto(_tensors.as_array(outputs[key]))
            response.outputs[key].ParseFromString(b"".join(pieces))
        return response

    def _classified(self, images: Sequence[Any]) -> dict[str, ArrayLike]:
        rows = [self.classify(image) for image in images]
        most = max((len(row) for row in rows if row), default=0)
        padded = [[*(row or ()), *[("", 0.0)] * most][:most] for row in rows]
        return {
            "classes": np.array([[name.encode() for name, _ in row] for row in padded], object),
            "scores": np.array([[score for _, score in row] for row in padded], np.float32),
            "valid": np.array([row is not None for row in rows], bool),
        }

    def _regress(self, request: tfs_pb2.RegressionRequest) -> tfs_pb2.RegressionResponse:
        return tfs_pb2.RegressionResponse(
            model_spec=self._spec(request.model_spec), result=self._regressed(request.input)
        )

    def _regressed(self, given: tfs_pb2.Input) -> tfs_pb2.RegressionResult:
        if self.regress is None:
            raise _RefusedError(grpc.StatusCode.UNIMPLEMENTED, "this FakeServer has no regress=")
        values = [self.regress(_features(example)) for example in given.example_list.examples]
        return tfs_pb2.RegressionResult(
            regressions=[tfs_pb2.Regression(value=value) for value in values]
        )

    def _multi_inference(
        self, request: tfs_pb2.MultiInferenceRequest
    ) -> tfs_pb2.MultiInferenceResponse:
        response = tfs_pb2.MultiInferenceResponse()
        for task in request.tasks:
            result = response.results.add(model_spec=self._spec(task.model_spec))
            if task.method_name == _calls.METHODS["regress"]:
                result.regression_result.CopyFrom(self._regressed(request.input))
                continue
            for example in request.input.example_list.examples:
                (image,) = _features(example).get("image/encoded", [b""])
                row = result.classification_result.classifications.add()
                for label, score in self.classify(image) or ():
                    row.classes.add(label=label, score=score)
        return response

    def _metadata(
        self, request: tfs_pb2.GetModelMetadataRequest
    ) -> tfs_pb2.GetModelMetadataResponse:
        response = tfs_pb2.GetModelMetadataResponse(model_spec=self._spec(request.model_spec))
        signatures = tfs_pb2.SignatureDefMap()
        for name, (alias, spec) in SIGNATURES.items():
            definition = signatures.signature_def[name]
            definition.method_name = "tensorflow/serving/predict"
            info = definition.inputs[alias]
            info.dtype = _tensors.dtype_number(spec.dtype)  # type: ignore[assignment]
            for size in spec.shape or ():
                info.tensor_shape.dim.add(size=size)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def _status(self, request: tfs_pb2.GetModelStatusRequest) -> tfs_pb2.GetModelStatusResponse:
        number = self._version(request.model_spec)
        asked = [number] if request.model_spec.HasField("version") else list(self.versions)
        response = tfs_pb2.GetModelStatusResponse()
        for version in sorted(asked, reverse=True):
            added = response.model_version_status.add(
                version=version, state=tfs_pb2.ModelVersionStatus.AVAILABLE
            )
            added.status.SetInParent()
        return response

    def _reload(self, _: tfs_pb2.ReloadConfigRequest) -> tfs_pb2.ReloadConfigResponse:
        return tfs_pb2.ReloadConfigResponse(status=tfs_pb2.StatusProto())


SIGNATURES = {
    "serving_default": ("image_bytes", TensorSpec("bytes", (-1,))),
    "predict_images": ("images", TensorSpec("uint8", (-1, -1, -1, 3))),
}


class _RefusedError(Exception):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


@contextmanager
def _status_of_errors(context: grpc.ServicerContext) -> Iterator[None]:
    try:
        yield
    except _RefusedError as refused:
        context.abort(refused.code, refused.details)


def _features(example: tfs_pb2.Example) -> dict[str, list[Any]]:
    return {
        name: list(getattr(feature, feature.WhichOneof("kind")).value)
        for name, feature in example.features.feature.items()
        if feature.WhichOneof("kind")
    }
