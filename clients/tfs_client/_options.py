"""What people tune: value objects, checked when made."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import grpc

from tfs_client._errors import TFSError

Pairs = Sequence["tuple[str, str | bytes]"]
"""gRPC metadata: names in lower case, values."""
Token = str | Callable[[], str]
"""A bearer token, or what returns one; it is asked before each attempt."""


class CallOptions(TypedDict, total=False):
    """What any call takes; what is not given, or is None, is the client's own.

    Attributes:
        model: the model's name.
        version: the model's version; the highest available where neither it nor a label is given.
        version_label: the label of a version, in place of its number.
        timeout: seconds that the whole call may take, or a Timeout.
        metadata: pairs sent along, after the client's own.
    """

    model: str | None
    version: int | None
    version_label: str | None
    timeout: float | Timeout | None
    metadata: Pairs | None


@dataclass(frozen=True)
class Timeout:
    """Seconds that work may take, retries and hedges included.

        Timeout()                     each request 30 s, a call of many requests without end
        Timeout(request=5, total=60)  each request 5 s, the whole call 60 s
        5.0                           in place of a Timeout: the whole call 5 s

    Attributes:
        request: for one request; a call with many images is several requests.
        total: for the whole call; None for no limit of its own.
    """

    request: float = 30.0
    total: float | None = None

    def __post_init__(self) -> None:
        for name, seconds in (("request", self.request), ("total", self.total)):
            if seconds is not None and not 0 < seconds <= MAX_SECONDS:
                raise ValueError(
                    f"timeout {name}={seconds!r} is not a number of seconds above 0 and to "
                    f"{MAX_SECONDS}"
                )

    @classmethod
    def of(cls, timeout: float | Timeout) -> Timeout:
        """A number bounds the whole call."""
        return timeout if isinstance(timeout, Timeout) else cls(timeout, timeout)


MAX_SECONDS = 86_400  # gRPC fails at once where a deadline is too far off for it


@dataclass(frozen=True)
class Retry:
    """When a failed request is sent again.

        Retry()             up to three times more, where that is safe
        Retry(attempts=1)   never

    A request's answer does not depend on whether it was sent before, so that any may be repeated;
    what decides is whether another attempt can help. A message beyond the server's limit, which
    has the same code as a full server, is never sent again.

    Attributes:
        attempts: of a request at the most, the first included.
        first_delay: seconds before the second attempt at the most; they double from one to the
            next. The delay is drawn between 0 and that, so that callers do not come back together.
        max_delay: the most that they grow to.
        codes: status codes after which another attempt is made. CANCELLED is what a server sends
            whose time to drain is over; a caller that cancels gets no answer at all.
        budget: retries and hedges for each request, in the long run: 0.2 adds a fifth to a failing
            server's load at the most. A hundred are saved up for bursts.
    """

    attempts: int = 4
    first_delay: float = 0.05
    max_delay: float = 1.0
    codes: frozenset[grpc.StatusCode] = field(
        default=frozenset(
            {
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                grpc.StatusCode.CANCELLED,
            }
        )
    )
    budget: float = 0.2

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts={self.attempts}: the first is one, so 1 is the least")
        if not 0 <= self.first_delay <= self.max_delay:
            raise ValueError("first_delay must be from 0 to max_delay")
        if not 0 <= self.budget <= 1:
            raise ValueError(f"budget={self.budget}: it is a share of the requests, from 0 to 1")


@dataclass(frozen=True, repr=False)
class TLS:
    """An encrypted connection.

        TLS()                                              with the system's authorities
        TLS(ca="ca.pem")                                   with one of one's own
        TLS(ca="ca.pem", certificate="me.pem", key="me.key")   mutual

    Attributes:
        ca: certificates of the authorities that the server's is checked against: a file's path or
            PEM bytes.
        certificate: the client's own, with its chain.
        key: the private key of that; it is in no repr and no message.
    """

    ca: str | os.PathLike[str] | bytes | None = None
    certificate: str | os.PathLike[str] | bytes | None = None
    key: str | os.PathLike[str] | bytes | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("TLS: certificate and key go together: give both or neither")

    def __repr__(self) -> str:
        return f"TLS(ca={_shown(self.ca)}, certificate={_shown(self.certificate)})"

    def credentials(self) -> grpc.ChannelCredentials:
        """For gRPC.

        Raises:
            TFSError: a file cannot be read, or what is in it is not PEM.
        """
        return grpc.ssl_channel_credentials(
            root_certificates=_pem("ca", self.ca),
            private_key=_pem("key", self.key),
            certificate_chain=_pem("certificate", self.certificate),
        )


_BEGIN = b"-----BEGIN"


def _shown(source: str | os.PathLike[str] | bytes | None) -> str:
    return "<bytes>" if isinstance(source, bytes) else repr(source)


def _pem(name: str, source: str | os.PathLike[str] | bytes | None) -> bytes | None:
    if source is None:
        return None
    if isinstance(source, str) and _BEGIN.decode() in source:
        raise TFSError(f"TLS {name}: this is PEM text: give it as bytes, or a file's path")
    try:
        content = source if isinstance(source, bytes) else _read(source)
    except (OSError, ValueError) as error:  # a path with a null character is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise TFSError(f"TLS {name} {source!r}: cannot be read: {reason}") from error
    if _BEGIN not in content:
        what = "these bytes are" if isinstance(source, bytes) else f"{source!r} is"
        raise TFSError(f"TLS {name}: {what} not PEM ({_BEGIN.decode()} …)")
    return content


def _read(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@dataclass(frozen=True)
class RequestEvent:
    """A request is about to be sent.

    Attributes:
        method: gRPC's path, `/tensorflow.serving.PredictionService/Predict`.
        model: the model asked for.
        address: the server's, as it was given.
        attempt: 1 for the first.
        size: of the message, in bytes.
    """

    method: str
    model: str
    address: str
    attempt: int
    size: int


@dataclass(frozen=True)
class ResponseEvent:
    """A request was answered, or failed.

    Attributes:
        request: what was sent.
        seconds: since then.
        code: gRPC's status code, OK for an answer.
        details: the server's words where it failed.
    """

    request: RequestEvent
    seconds: float
    code: grpc.StatusCode
    details: str


@dataclass(frozen=True)
class Hooks:
    """Functions told of each attempt, in the thread or task that makes it.

    Attributes:
        on_request: before it is sent.
        on_response: after it is answered or failed.
    """

    on_request: Callable[[RequestEvent], None] | None = None
    on_response: Callable[[ResponseEvent], None] | None = None
