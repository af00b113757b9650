"""What Client and AsyncClient have in common: everything but waiting."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import grpc

from tfs_client import _calls, _channels, _errors, _images
from tfs_client._attempts import Attempts, Budget, Rotation, call_deadline
from tfs_client._calls import Call
from tfs_client._channels import DEFAULT_ADDRESS, Link, Target
from tfs_client._errors import (
    AccessDeniedError,
    Asked,
    InvalidImageError,
    ServerError,
    TFSError,
    UnsupportedError,
)
from tfs_client._options import (
    MAX_SECONDS,
    TLS,
    CallOptions,
    Hooks,
    Pairs,
    RequestEvent,
    ResponseEvent,
    Retry,
    Timeout,
    Token,
)
from tfs_client._results import Classification, VersionStatus

DEFAULT_MODEL = "googlenet"
POLL_SECONDS, POLL_TIMEOUT = 0.1, 2.0
# What is not about to change by waiting.
FINAL = (AccessDeniedError, UnsupportedError)
_TIMEOUT, _RETRY, _ONCE = Timeout(), Retry(), Retry(attempts=1)

_OK = grpc.StatusCode.OK
Result = TypeVar("Result")
Errors = Literal["raise", "return"]
Answer = Classification | TFSError


class Scope(NamedTuple):
    """One call of the user's: what it may take and what goes with each of its requests."""

    asked: Asked
    timeout: Timeout
    deadline: float
    metadata: Pairs
    retry: Retry


class Sent(NamedTuple):
    """One attempt under way."""

    link: Link
    event: RequestEvent | None = None  # where there are hooks
    started: float = 0.0


class BaseClient(ABC):
    """A client's settings.

    Args:
        address: `host:port` of a server's gRPC API, another of gRPC's target names
            (`dns:///name:8500`, `unix:/path`), or a list of these. All servers that a name stands
            for get their share of the requests.
        model: the model's name.
        version: the model's version; None for the highest available.
        version_label: the label of a version, in place of its number.
        timeout: seconds that a call may take, or a Timeout.
        retry: when a failed request is sent again.
        hedge: seconds without an answer after which a second copy of a request is sent, to another
            server if there is one; the first answer counts. None for never.
        batch_size: images in a request at the most.
        max_request_bytes: in a request of several images at the most.
        in_flight: requests of one call with many images that are under way at a time.
        tls: for an encrypted connection.
        token: sent as `authorization: Bearer …`; refused without TLS unless `plaintext_token`.
        metadata: pairs sent with every request.
        plaintext_token: let secrets go over a connection that is not encrypted.
        authority: the name that the server is to take itself for, in place of the address's.
        connections: to each address; several where one is the limit.
        keepalive: seconds between pings while a call is under way, at least 10; None for 600.
        hooks: told of each attempt.
        interceptors: gRPC's client interceptors, such as OpenTelemetry's.

    Raises:
        TFSError: an address is none, or a file of `tls` cannot be read.
        ValueError: a setting is out of its range.
    """

    def __init__(
        self,
        address: str | Sequence[str] = DEFAULT_ADDRESS,
        model: str = DEFAULT_MODEL,
        timeout: float | Timeout = _TIMEOUT,
        *,
        version: int | None = None,
        version_label: str | None = None,
        retry: Retry = _RETRY,
        hedge: float | None = None,
        batch_size: int = 32,
        max_request_bytes: int = 16 << 20,
        in_flight: int = 4,
        tls: TLS | None = None,
        token: Token | None = None,
        metadata: Pairs = (),
        plaintext_token: bool = False,
        authority: str | None = None,
        connections: int = 1,
        keepalive: float | None = None,
        hooks: Hooks | None = None,
        interceptors: Sequence[Any] = (),
    ) -> None:
        for name, number in (
            ("batch_size", batch_size),
            ("max_request_bytes", max_request_bytes),
            ("in_flight", in_flight),
        ):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} is {number}: it must be a whole number from 1")
        if hedge is not None and not 0 < hedge <= MAX_SECONDS:
            raise ValueError(f"hedge={hedge}: it is a number of seconds above 0")
        self.address = address if isinstance(address, str) else ",".join(address)
        self.model = model
        self.batch_size = batch_size
        self._version = _version(version, version_label)
        self._timeout = Timeout.of(timeout)
        self._retry = retry
        self._hedge = hedge
        self._max_request_bytes = max_request_bytes
        self._in_flight = in_flight
        self._token = token
        self._plaintext_token = plaintext_token or tls is not None
        self._metadata = tuple(metadata)
        self._hooks = hooks
        self._interceptors = tuple(interceptors)
        self._budget = Budget(retry.budget)
        targets = _channels.targets(
            address, connections, tls.credentials() if tls else None, authority, keepalive
        )
        self._links = [Link(target, self._open) for target in targets]
        self._rotation = Rotation(self._links)
        self._closed = False
        if token is not None:
            self._check_secret("a token")
        self._check_metadata(self._metadata)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r}, model={self.model!r})"

    @abstractmethod
    def _open(self, target: Target) -> Any:
        """A channel of the client's kind."""

    # --- a call's own settings ---

    def _scope(self, options: CallOptions, signature: str = "") -> Scope:
        self._check_open()
        if not options:
            asked = Asked(self.model, self._version, signature)
            deadline = call_deadline(self._timeout)
            return Scope(asked, self._timeout, deadline, self._metadata, self._retry)
        if unknown := options.keys() - CallOptions.__annotations__:
            raise TypeError(f"unexpected keyword argument {min(unknown)!r}")
        model = options.get("model") or self.model
        version = _version(options.get("version"), options.get("version_label"))
        if version is None and model == self.model:  # the client's own version is of its own model
            version = self._version
        given = options.get("timeout")
        timeout = self._timeout if given is None else Timeout.of(given)
        metadata = self._metadata
        more = options.get("metadata")
        if more:
            self._check_metadata(more)
            metadata = (*metadata, *more)
        asked = Asked(model, version, signature)
        return Scope(asked, timeout, call_deadline(timeout), metadata, self._retry)

    def _poll(self, seconds: float, model: str | None, version: int | None) -> Scope:
        """Of a call that is made again and again anyway."""
        timeout = min(max(seconds, POLL_SECONDS), POLL_TIMEOUT)
        scope = self._scope({"model": model, "version": version, "timeout": timeout})
        return scope._replace(retry=_ONCE)

    def _check_open(self) -> None:
        if self._closed:
            raise TFSError(f"{self.address}: this client is closed: make a new one")

    def _check_metadata(self, metadata: Pairs) -> None:
        for name, value in metadata:
            if not re.fullmatch(r"[0-9a-z_.-]+", name):
                raise ValueError(f"metadata {name!r}: a name has small letters, digits, _ . and -")
            if not name.endswith("-bin") and not _is_plain(value):
                raise ValueError(f"metadata {name!r}: its value is not printable ASCII text")
        if any(name == "authorization" for name, _ in metadata):
            self._check_secret("authorization metadata")

    def _check_secret(self, what: str) -> None:
        if not self._plaintext_token:
            raise TFSError(
                f"{self.address}: {what} would be sent in the clear: use tls=TLS(…), or say "
                f"plaintext_token=True"
            )

    # --- one attempt ---

    def _attempts(self, scope: Scope) -> Attempts[Link]:
        return Attempts(scope.retry, self._budget, scope.timeout, scope.deadline, len(self._links))

    def _headers(self, scope: Scope) -> Pairs:
        if self._token is None:
            return scope.metadata
        token = self._token if isinstance(self._token, str) else self._token()
        if not isinstance(token, str) or not _is_plain(token.strip()):
            raise TypeError("the token is not printable ASCII text")
        return (*scope.metadata, ("authorization", f"Bearer {token.strip()}"))

    def _begin(self, call: Call[Any], attempts: Attempts[Link]) -> Sent:
        link = attempts.link = self._rotation.next(attempts.link)
        if self._hooks is None:
            return Sent(link)
        event = RequestEvent(
            call.method, call.asked.model, link.address, attempts.made, len(call.request)
        )
        if self._hooks.on_request:
            self._hooks.on_request(event)
        return Sent(link, event, time.monotonic())

    def _ended(self, sent: Sent, code: grpc.StatusCode = _OK, details: str = "") -> None:
        """Take note of how an attempt ended."""
        # A server that hangs does not even say that it cannot answer.
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            self._rotation.failed(sent.link)
        elif code is _OK:
            self._rotation.answered(sent.link)
        if self._hooks and self._hooks.on_response and sent.event:
            seconds = time.monotonic() - sent.started
            self._hooks.on_response(ResponseEvent(sent.event, seconds, code, details))

    def _error(
        self, call: Call[Any], attempts: Attempts[Link], link: Link, status: Any
    ) -> ServerError:
        return _errors.server_error(
            status.code(), status.details() or "", link.address, call.asked, attempts.made
        )

    def _too_late(self, call: Call[Any], attempts: Attempts[Link]) -> ServerError:
        return _errors.server_error(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "no time is left",
            self.address,
            call.asked,
            attempts.made - 1,
        )

    def _read(self, call: Call[Result], attempts: Attempts[Link], response: Any) -> Result:
        try:
            return call.read(response)
        except (ValueError, TypeError, LookupError) as error:
            raise _errors.server_error(
                grpc.StatusCode.INTERNAL,
                f"its answer cannot be read: {error}",
                attempts.link.address if attempts.link else self.address,
                call.asked,
                attempts.made,
            ) from error

    # --- images ---

    def _stream(self, ordered: bool, errors: Errors) -> Stream:
        if errors not in ("raise", "return"):
            raise ValueError(f"errors is {errors!r}: it must be 'raise' or 'return'")
        return Stream(ordered, errors, _images.Grouping(self.batch_size, self._max_request_bytes))

    def _classify_call(
        self, scope: Scope, batch: list[_images.Prepared]
    ) -> Call[list[Classification | InvalidImageError]]:
        return _calls.classify(scope.asked.model, scope.asked.version, batch)


def _is_plain(text: str | bytes) -> bool:
    return isinstance(text, str) and text.isascii() and text.isprintable()


def _version(number: int | None, label: str | None) -> int | str | None:
    if number is not None and label is not None:
        raise ValueError(f"version={number} and version_label={label!r}: give one of them")
    return label if number is None else number


def available(statuses: list[VersionStatus]) -> tuple[int | None, str]:
    """The highest version that is available, and what is there in its place."""
    seen = "no version"
    for status in statuses:
        if status.state == "AVAILABLE":
            return status.version, ""
        seen = f"version {status.version} {status.state} {status.error}".rstrip()
    return None, seen


class Stream:
    """The results of a call with many images, between those that come and those that are due."""

    def __init__(self, ordered: bool, errors: Errors, grouping: _images.Grouping) -> None:
        self.ordered = ordered
        self._errors = errors
        self._grouping = grouping
        self._waiting: dict[int, Answer] = {}
        self._next = 0

    def take(self, position: int, image: Any) -> list[list[_images.Prepared]]:
        """Read one more image; returns the batches that are to be sent now."""
        complete: list[list[_images.Prepared]] = []
        try:
            complete += self._grouping.add(_images.prepare(position, image))
        except InvalidImageError as error:
            self._waiting[position] = error
        return [*complete, *self._grouping.overdue(position)]

    def rest(self) -> Iterator[list[_images.Prepared]]:
        """The batches that are not full."""
        return self._grouping.rest()

    def put(self, batch: list[_images.Prepared], answers: Sequence[Answer] | TFSError) -> None:
        """Results of a batch, or the error of all of it."""
        if isinstance(answers, TFSError):
            answers = [answers] * len(batch)
        for image, answer in zip(batch, answers, strict=True):
            self._waiting[image.position] = answer

    def due(self) -> Iterator[Any]:
        """What may be handed out now; raises a result that is an error, if so asked."""
        while self._waiting:
            position = self._next if self.ordered else next(iter(self._waiting))
            if position not in self._waiting:
                return
            answer = self._waiting.pop(position)
            self._next += 1
            if self._errors == "raise" and isinstance(answer, TFSError):
                raise answer
            yield answer
