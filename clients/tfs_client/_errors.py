"""What can go wrong.

TFSError
├── InvalidImageError         the image, not the call: unreadable, or not an image
├── NotReadyError             no version of the model became available in time
└── ServerError               the server's or the network's answer
    ├── CancelledError            CANCELLED
    ├── DeadlineExceededError     DEADLINE_EXCEEDED: no answer in time
    ├── InvalidRequestError       INVALID_ARGUMENT, FAILED_PRECONDITION, OUT_OF_RANGE,
    │                             ALREADY_EXISTS: the server does not accept the request
    ├── UnsupportedError          UNIMPLEMENTED: the server has no such method
    ├── NotFoundError             NOT_FOUND: no such model or version
    ├── AccessDeniedError         UNAUTHENTICATED, PERMISSION_DENIED
    ├── ResourceExhaustedError    RESOURCE_EXHAUSTED: the server is full, or the message too large
    ├── UnavailableError          UNAVAILABLE: no server there, or it is going away
    └── InternalError             INTERNAL, UNKNOWN, DATA_LOSS, ABORTED: the server's own fault
"""

from __future__ import annotations

from typing import Any, NamedTuple

import grpc


class TFSError(Exception):
    """Any error of this library."""


class InvalidImageError(TFSError):
    """One image cannot be classified; others in the same call can.

    Attributes:
        image: its path, or its position in the call.
        reason: what is wrong with it.
        position: its place in the call, from 0.
    """

    def __init__(self, image: str, reason: str, position: int = 0) -> None:
        super().__init__(f"{image}: {reason}")
        self.image = image
        self.reason = reason
        self.position = position

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.image, self.reason, self.position)


class Asked(NamedTuple):
    """What a request was for.

    Attributes:
        model: the model's name.
        version: its number or label; None for the highest available.
        signature: the signature's name; empty for the model's default or where there is none.
    """

    model: str
    version: int | str | None = None
    signature: str = ""

    def __str__(self) -> str:
        version = "" if self.version is None else f" version {self.version}"
        signature = f" signature {self.signature}" if self.signature else ""
        return f"model {self.model}{version}{signature}"


class NotReadyError(TFSError):
    """The model did not become available in time.

    Attributes:
        address: the server asked.
        model: the model asked for.
        seconds: that were waited.
        seen: what was there in its place.
    """

    def __init__(self, address: str, model: str, seconds: float, seen: str) -> None:
        super().__init__(f"{address}, model {model}: not available in {seconds:g} s: {seen}")
        self.address = address
        self.model = model
        self.seconds = seconds
        self.seen = seen

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.address, self.model, self.seconds, self.seen)


class ServerError(TFSError):
    """A call failed. The class's `advice` says what to do.

    Attributes:
        code: gRPC's status code.
        details: the server's words.
        address: the server called.
        model: the model asked for.
        version: its version, number or label, where one was asked for.
        signature: the signature asked for; empty where none was.
        attempts: how often the request was sent.
    """

    advice = "see the server's log"

    def __init__(
        self, code: grpc.StatusCode, details: str, address: str, asked: Asked, attempts: int
    ) -> None:
        tries = f" after {attempts} attempts" if attempts > 1 else ""
        super().__init__(f"{address}, {asked}: {details or code.name}{tries} ({self.advice})")
        self.code = code
        self.details = details
        self.address = address
        self.model = asked.model
        self.version = asked.version
        self.signature = asked.signature
        self.attempts = attempts

    def __reduce__(self) -> tuple[Any, ...]:
        asked = Asked(self.model, self.version, self.signature)
        return type(self), (self.code, self.details, self.address, asked, self.attempts)


class CancelledError(ServerError):
    """The call was given up, by the caller or by something between."""

    advice = "something between closed the call: try again"


class DeadlineExceededError(ServerError):
    """There was no answer in time."""

    advice = "allow a longer timeout, or send fewer images at a time"


class InvalidRequestError(ServerError):
    """The server does not accept the request."""

    advice = "compare the request with the model's metadata"


class UnsupportedError(ServerError):
    """The server has no such method."""

    advice = "is this address a TensorFlow Serving server's gRPC port?"


class NotFoundError(ServerError):
    """The server has no such model or version."""

    advice = "ask the server's status for the models and versions it has"


class AccessDeniedError(ServerError):
    """The server does not let this caller in."""

    advice = "give the client the certificate or token that the server asks for"


class ResourceExhaustedError(ServerError):
    """The server is full, or the message larger than it takes."""

    advice = "call again later, or send fewer images at a time"


class UnavailableError(ServerError):
    """No server answers at the address, or it is going away."""

    advice = "is the server running, and is the address right?"


class InternalError(ServerError):
    """The server failed by itself."""


BY_CODE: dict[grpc.StatusCode, type[ServerError]] = {
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.ALREADY_EXISTS: InvalidRequestError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.UNAUTHENTICATED: AccessDeniedError,
    grpc.StatusCode.PERMISSION_DENIED: AccessDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNKNOWN: InternalError,
    grpc.StatusCode.DATA_LOSS: InternalError,
    grpc.StatusCode.ABORTED: InternalError,
}


def server_error(
    code: grpc.StatusCode, details: str, address: str, asked: Asked, attempts: int
) -> ServerError:
    """A status as one of ours."""
    return BY_CODE[code](code, details, address, asked, attempts)
