"""The client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

import grpc

from tfs_client import _errors, _images, _tensors, tfs_pb2
from tfs_client._errors import InvalidImageError, NotFoundError, TFSError, UnavailableError
from tfs_client._images import Image, Prepared
from tfs_client._results import Classification, Label, Signature, TensorSpec, VersionStatus

DEFAULT_ADDRESS = "localhost:8500"
DEFAULT_MODEL = "googlenet"
DEFAULT_TIMEOUT = 30.0

_PREDICTION = "/tensorflow.serving.PredictionService/"
_MODEL = "/tensorflow.serving.ModelService/"
_POLL_SECONDS = 0.1
# Answers and requests may be larger than gRPC's 4 MiB (tensorflow/serving issue 1382).
_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))

Result = TypeVar("Result")


class Client:
    """Calls one model on one server. Threads may share it.

        with Client("localhost:8500") as client:
            client.classify("ankle-boot.png").label

    Args:
        address: `host:port` of the server's gRPC API, or another of gRPC's target names.
        model: the model's name.
        timeout: seconds that a request may take; many images are sent in several.
        batch_size: images in a request at the most.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        model: str = DEFAULT_MODEL,
        timeout: float = DEFAULT_TIMEOUT,
        batch_size: int = 32,
    ) -> None:
        _check_address(address)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
        self.address = address
        self.model = model
        self.timeout = timeout
        self.batch_size = batch_size
        self._closed = False
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._predict = self._method(_PREDICTION + "Predict", tfs_pb2.PredictResponse)
        self._status = self._method(_MODEL + "GetModelStatus", tfs_pb2.GetModelStatusResponse)
        self._metadata = self._method(
            _PREDICTION + "GetModelMetadata", tfs_pb2.GetModelMetadataResponse
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls after it raise TFSError."""
        self._closed = True
        self._channel.close()

    # A path is an iterable of strings too, to a type checker; the first overload that fits counts.
    @overload
    def classify(  # type: ignore[overload-overlap]
        self, images: Image, *, version: int | None = ..., timeout: float | None = ...
    ) -> Classification: ...

    @overload
    def classify(
        self,
        images: Iterable[Image],
        *,
        version: int | None = ...,
        timeout: float | None = ...,
        errors: Literal["raise"] = ...,
    ) -> list[Classification]: ...

    @overload
    def classify(
        self,
        images: Iterable[Image],
        *,
        version: int | None = ...,
        timeout: float | None = ...,
        errors: Literal["return"],
    ) -> list[Classification | InvalidImageError]: ...

    def classify(
        self,
        images: Image | Iterable[Image],
        *,
        version: int | None = None,
        timeout: float | None = None,
        errors: str = "raise",
    ) -> Any:
        """The most probable classes of one image or of several.

        Args:
            images: a path, an encoded image (bytes), uint8 pixels [H,W,3], or an iterable of
                these; pixels [N,H,W,3] are N images.
            version: the model's version; None for the highest available.
            timeout: seconds for each request that the images are sent in.
            errors: `raise` the first bad image's error, or `return` errors in their places.

        Returns:
            One classification for one image; for several, a list in their order.

        Raises:
            InvalidImageError: an image cannot be read or decoded.
            ServerError: a request failed.
        """
        if _images.is_single(images):
            return self._classify_all([images], version, timeout, "raise")[0]  # type: ignore[list-item]
        return self._classify_all(images, version, timeout, errors)  # type: ignore[arg-type]

    def status(self, timeout: float | None = None) -> list[VersionStatus]:
        """The model's versions, highest first.

        Raises:
            NotFoundError: the server does not know the model.
            ServerError: the call failed.
        """
        request = tfs_pb2.GetModelStatusRequest(model_spec=self._spec(None))
        response = self._call(self._status, request, timeout)
        return [
            VersionStatus(
                status.version,
                tfs_pb2.ModelVersionStatus.State.Name(status.state),
                status.status.error_message,
            )
            for status in response.model_version_status
        ]

    def metadata(
        self, version: int | None = None, timeout: float | None = None
    ) -> dict[str, Signature]:
        """The model's signatures by name.

        Raises:
            NotFoundError: the server does not have the model or version.
            ServerError: the call failed.
        """
        request = tfs_pb2.GetModelMetadataRequest(
            model_spec=self._spec(version), metadata_field=["signature_def"]
        )
        response = self._call(self._metadata, request, timeout)
        signatures = tfs_pb2.SignatureDefMap.FromString(response.metadata["signature_def"].value)
        return {
            name: Signature(
                definition.method_name, _specs(definition.inputs), _specs(definition.outputs)
            )
            for name, definition in sorted(signatures.signature_def.items())
            if definition.method_name  # a graph's initialiser is listed too, without one
        }

    def wait_until_ready(self, timeout: float = 60.0) -> int:
        """Wait until a version of the model is available; returns its number.

        Raises:
            TFSError: none was within `timeout` seconds; the message says what was there.
        """
        deadline = time.monotonic() + timeout
        while True:
            seen = "no server"
            try:
                for status in self.status(timeout=max(0.01, deadline - time.monotonic())):
                    if status.state == "AVAILABLE":
                        return status.version
                    seen = f"version {status.version} {status.state} {status.error}"
            except (UnavailableError, NotFoundError) as error:
                seen = str(error)
            if time.monotonic() + _POLL_SECONDS > deadline:
                raise TFSError(
                    f"{self.address}, model {self.model}: not available in {timeout:g} s: {seen}"
                )
            time.sleep(_POLL_SECONDS)

    def _classify_all(
        self,
        images: Iterable[Image],
        version: int | None,
        timeout: float | None,
        errors: str,
    ) -> list[Classification | InvalidImageError]:
        if errors not in ("raise", "return"):
            raise ValueError(f"errors is {errors!r}: it must be 'raise' or 'return'")
        results: dict[int, Classification | InvalidImageError] = {}

        def readable() -> Iterable[Prepared]:
            for position, image in enumerate(images):
                try:
                    yield _images.prepare(position, image)
                except InvalidImageError as error:
                    results[position] = _kept(error, errors)

        for batch in _images.batches(readable(), self.batch_size):
            answers = self._classify_batch(batch, version, timeout)
            for image, answer in zip(batch, answers, strict=True):
                if answer is None:
                    error = InvalidImageError(image.name, "is not a JPEG, PNG, GIF or BMP image")
                    results[image.position] = _kept(error, errors)
                else:
                    results[image.position] = answer
        return [results[position] for position in sorted(results)]

    def _classify_batch(
        self, batch: list[Prepared], version: int | None, timeout: float | None
    ) -> list[Classification | None]:
        """One request; None in the place of an image that the server could not decode."""
        signature, name, tensor = _images.to_input(batch)
        request = tfs_pb2.PredictRequest(
            model_spec=self._spec(version, signature),
            inputs={name: tensor},
            output_filter=["classes", "scores", "valid"],
        )
        response = self._call(self._predict, request, timeout)
        outputs = {key: _tensors.from_proto(proto) for key, proto in response.outputs.items()}
        model, number = response.model_spec.name, response.model_spec.version.value
        rows = zip(
            outputs["classes"].tolist(), outputs["scores"].tolist(), outputs["valid"], strict=True
        )
        return [
            Classification(_labels(classes, scores), model, number) if valid else None
            for classes, scores, valid in rows
        ]

    def _spec(self, version: int | None, signature: str = "") -> tfs_pb2.ModelSpec:
        spec = tfs_pb2.ModelSpec(name=self.model, signature_name=signature)
        if version is not None:
            spec.version.value = version
        return spec

    def _method(self, path: str, response: Any) -> Callable[..., Any]:
        return self._channel.unary_unary(
            path,
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=response.FromString,
        )

    def _call(self, method: Callable[..., Any], request: Any, timeout: float | None) -> Any:
        if self._closed:
            raise TFSError(f"{self.address}: this client is closed: make a new one")
        try:
            return method(request, timeout=self.timeout if timeout is None else timeout)
        except grpc.RpcError as error:
            raise _errors.from_rpc_error(error, self.address, self.model) from error


def _check_address(address: str) -> None:
    """Refuse what gRPC would take for port 443 (no port) or modulo 65536 (a large one)."""
    _, _, port = address.rpartition(":")
    scheme = "://" in address or address.startswith(("unix:", "dns:", "ipv4:", "ipv6:"))
    if not scheme and not (port.isdecimal() and 0 < int(port) < 65536 and address != f":{port}"):
        raise TFSError(f"address {address!r} is not host:port, such as {DEFAULT_ADDRESS}")


def _kept(error: InvalidImageError, errors: str) -> InvalidImageError:
    if errors == "raise":
        raise error
    return error


def _labels(classes: list[bytes], scores: list[float]) -> tuple[Label, ...]:
    return tuple(Label(name.decode(), score) for name, score in zip(classes, scores, strict=True))


def _specs(infos: Any) -> dict[str, TensorSpec]:
    return {name: _spec_of(info) for name, info in sorted(infos.items())}


def _spec_of(info: tfs_pb2.TensorInfo) -> TensorSpec:
    shape = info.tensor_shape
    sizes = None if shape.unknown_rank else tuple(dim.size for dim in shape.dim)
    return TensorSpec(_tensors.dtype_name(info.dtype), sizes)
