"""What can go wrong.

TFSError
├── InvalidImageError         the image, not the call: unreadable, or not an image
└── ServerError               the server's or the network's answer
├── DeadlineExceededError     no answer in time
├── InvalidRequestError       the server does not accept the request
├── NotFoundError             no such model or version
├── ResourceExhaustedError    the server is full, or the message too large
└── UnavailableError          no server there, or it is going away
"""

from __future__ import annotations

import grpc


class TFSError(Exception):
    """Any error of this library."""


class InvalidImageError(TFSError):
    """One image cannot be classified; others in the same call can.

    Attributes:
        image: its path, or its position in the call.
        reason: what is wrong with it.
    """

    def __init__(self, image: str, reason: str) -> None:
        super().__init__(f"{image}: {reason}")
        self.image = image
        self.reason = reason


class ServerError(TFSError):
    """A call failed.

    Attributes:
        code: gRPC's status code.
        details: the server's words.
        address: the server called.
        model: the model asked for.
    """

    advice = "see the server's log"

    def __init__(self, code: grpc.StatusCode, details: str, address: str, model: str) -> None:
        super().__init__(f"{address}, model {model}: {details or code.name} ({self.advice})")
        self.code = code
        self.details = details
        self.address = address
        self.model = model


class DeadlineExceededError(ServerError):
    """There was no answer in time."""

    advice = "allow a longer timeout, or send fewer images at a time"


class InvalidRequestError(ServerError):
    """The server does not accept the request."""

    advice = "compare the request with the model's metadata"


class NotFoundError(ServerError):
    """The server has no such model or version."""

    advice = "ask the server's status for the models and versions it has"


class ResourceExhaustedError(ServerError):
    """The server is full, or the message larger than it takes."""

    advice = "call again later, or send fewer images at a time"


class UnavailableError(ServerError):
    """No server answers at the address, or it is going away."""

    advice = "is the server running, and is the address right?"


_BY_CODE: dict[grpc.StatusCode, type[ServerError]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.UNIMPLEMENTED: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
}


def from_rpc_error(error: grpc.RpcError, address: str, model: str) -> ServerError:
    """GRPC's error as one of ours."""
    # What a call raises is an RpcError that is a Call too, which gRPC's types do not say.
    code: grpc.StatusCode = error.code()
    details: str = error.details() or ""
    return _BY_CODE.get(code, ServerError)(code, details, address, model)
