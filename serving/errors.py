"""What the server answers when it cannot: one error with a canonical code, one table.

The codes are TensorFlow's and gRPC's, which are the same (`absl::StatusCode`); a TensorFlow error
raised inside a model keeps its own.
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import grpc
import tensorflow as tf


class _Status(NamedTuple):
    """A canonical code's number, and what it is in gRPC and in HTTP (http_server.cc)."""

    number: int
    grpc: grpc.StatusCode
    http: int


class Code(Enum):
    """Canonical codes; `Code(5)` is the one with that number."""

    CANCELLED = _Status(1, grpc.StatusCode.CANCELLED, 499)
    UNKNOWN = _Status(2, grpc.StatusCode.UNKNOWN, 500)
    INVALID_ARGUMENT = _Status(3, grpc.StatusCode.INVALID_ARGUMENT, 400)
    DEADLINE_EXCEEDED = _Status(4, grpc.StatusCode.DEADLINE_EXCEEDED, 504)
    NOT_FOUND = _Status(5, grpc.StatusCode.NOT_FOUND, 404)
    ALREADY_EXISTS = _Status(6, grpc.StatusCode.ALREADY_EXISTS, 409)
    PERMISSION_DENIED = _Status(7, grpc.StatusCode.PERMISSION_DENIED, 403)
    RESOURCE_EXHAUSTED = _Status(8, grpc.StatusCode.RESOURCE_EXHAUSTED, 429)
    FAILED_PRECONDITION = _Status(9, grpc.StatusCode.FAILED_PRECONDITION, 400)
    ABORTED = _Status(10, grpc.StatusCode.ABORTED, 409)
    OUT_OF_RANGE = _Status(11, grpc.StatusCode.OUT_OF_RANGE, 400)
    UNIMPLEMENTED = _Status(12, grpc.StatusCode.UNIMPLEMENTED, 501)
    INTERNAL = _Status(13, grpc.StatusCode.INTERNAL, 500)
    UNAVAILABLE = _Status(14, grpc.StatusCode.UNAVAILABLE, 503)
    DATA_LOSS = _Status(15, grpc.StatusCode.DATA_LOSS, 500)
    UNAUTHENTICATED = _Status(16, grpc.StatusCode.UNAUTHENTICATED, 401)

    @classmethod
    def _missing_(cls, value: object) -> "Code":
        return next((code for code in cls if code.value.number == value), cls.UNKNOWN)


# What TensorFlow adds to an operation's own words: where its graph was made, on which node.
_ADDED = re.compile(
    r"^(Graph execution error|Detected at node|File \"|<stack traces|\[\[\{\{|Function call stack|"
    r"Original stack trace)|^[^ ]* -> [^ ]*$"
)


@dataclass
class ServingError(Exception):
    """A request that cannot be answered, and why."""

    code: Code
    message: str

    def __str__(self) -> str:
        return self.message


class ConfigError(Exception):
    """A flag or a file that the server cannot start with; the message says what to do."""


def invalid_argument(message: str) -> ServingError:
    return ServingError(Code.INVALID_ARGUMENT, message)


def not_found(message: str) -> ServingError:
    return ServingError(Code.NOT_FOUND, message)


def failed_precondition(message: str) -> ServingError:
    return ServingError(Code.FAILED_PRECONDITION, message)


def translate(error: Exception) -> ServingError:
    """Any error as a `ServingError`: TensorFlow's keep their code, others are INTERNAL."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, ConfigError):  # of a version's own file
        return invalid_argument(str(error))
    if isinstance(error, tf.errors.OpError):
        return ServingError(Code(error.error_code), _essence(error.message))
    return ServingError(Code.INTERNAL, f"{type(error).__name__}: {first_line(error)}")


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _essence(message: str) -> str:
    """An operation's own words, on one line; callers have no use for the server's stack."""
    lines = (line.strip() for line in message.splitlines())
    kept = " ".join(line for line in lines if line and not _ADDED.match(line))
    return re.sub(r"\s*\[Op:[^]]*\].*$|\{\{function_node [^}]*\}\}\s*", "", kept) or message
