"""TensorFlow Serving's REST API: find the endpoint, call the engine, write the answer as JSON.

    start_server(repository, metrics, port=8501, threads=8, timeout_ms=30_000, cors=False,
                 metrics_path=None, max_body_bytes=2**26, access_log=None)

Paths, methods and statuses are those of model_servers/http_rest_api_{handler,util}.cc and
http_server.cc; HTTP itself is cheroot's.
"""

import contextlib
import gzip
import json
import logging
import re
import socket
import threading
import time
import urllib.parse
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import cheroot.errors
import cheroot.server
import cheroot.wsgi
from google.protobuf import json_format
from google.protobuf.message import Message
from tensorflow_serving.apis import get_model_metadata_pb2
from werkzeug.wrappers import Request, Response

from serving import grpc_api, json_examples, json_tensors, json_text
from serving.engine import DEFAULT_SIGNATURE
from serving.errors import ConfigError, invalid_argument, translate
from serving.metrics import Call, Metrics
from serving.repository import MAX_VERSION, Repository

log = logging.getLogger(__name__)

AccessLog = Callable[..., None]

_VERSION = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_PATHS = {
    "POST": re.compile(
        rf"(?i)/v1/models/(?P<model>[^/:]+){_VERSION}:(?P<action>classify|regress|predict)"
    ),
    "GET": re.compile(rf"(?i)/v1/models(?:/(?P<model>[^/:]+))?{_VERSION}(?:/(?P<part>metadata))?"),
}
# A path, its query and its fragment in RFC 3986's characters; libevent refuses others.
_URI = re.compile(r"(?:[\w.~!$&'()*+,;=:@/?#-]|%[0-9A-Fa-f]{2})*", re.ASCII)
_METHODS = {"GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"}
_CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
_JSON, _HTML, _TEXT = "application/json", "text/html", "text/plain; version=0.0.4; charset=utf-8"
_MIN_COMPRESSED = 1024  # below that, gzip saves no packet
_WAITING = 1024  # connections: listening, idle between requests, or waiting for a thread
_RECEIVING = 64  # threads for requests that come slowly, and for those that compute nothing
_MAX_HEADER_BYTES = 64 * 1024
_IDLE_SECONDS = 30
_LAST_ANSWER_SECONDS = 1.0  # for a connection that is kept to learn that it ends
_QUIET_LOOKS = 10  # of 10 ms, in which none was kept
_PIECE_BYTES = 2**20


@dataclass(frozen=True)
class _Target:
    """What a path names; nothing, if it is malformed."""

    model: str = ""
    version: str = ""
    label: str = ""
    action: str = ""
    part: str = ""
    found: bool = False


class _TooLargeError(Exception):
    """A body beyond the limit."""


@dataclass(frozen=True)
class _Application:
    """The WSGI application."""

    repository: Repository
    metrics: Metrics
    timeout_ms: int
    cors: bool
    metrics_path: str | None
    max_body_bytes: int
    access_log: AccessLog | None
    at_work: threading.Semaphore

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request, by WSGI."""
        started, request = time.perf_counter(), Request(environ)
        response = self._respond(request, environ["REQUEST_URI"])
        _compress(request, response)
        if self.access_log:
            self.access_log(
                entrypoint="REST",
                method=request.method,
                path=environ["REQUEST_URI"],
                status=response.status_code,
                seconds=time.perf_counter() - started,
            )
        return response(environ, start_response)

    def _respond(self, request: Request, uri: str) -> Response:
        path = uri.partition("?")[0]
        if request.method not in _METHODS:
            return _page(501, "Not Implemented")
        if not _URI.fullmatch(uri):
            return _page(400, "Bad Request")
        if self.metrics_path and path == self.metrics_path:
            if uri != path:
                return Response(f"Unexpected path: {uri}. Should be {path}", 400)
            return Response(self.metrics.page(), content_type=_TEXT)
        if not uri.lower().startswith("/v1/"):
            return _page(404, "Not Found")
        response = self._api(request, uri)
        if self.cors:
            response.headers.update(_CORS_HEADERS)
        return response

    def _api(self, request: Request, uri: str) -> Response:
        try:
            data = self._body(request)
        except _TooLargeError:
            message = (
                f"The body is larger than {self.max_body_bytes} bytes, the limit set by "
                "--rest_api_max_body_bytes"
            )
            return _error(413, message)
        except ValueError as error:
            return _error(400, str(error))
        target = _target(request.method, uri)
        try:
            with self.metrics.request(target.model, target.action, "REST") as call:
                body = self._answer(request, uri, target, data, call)
            return Response(body, content_type=_JSON)
        except Exception as error:
            refusal = translate(error)
            if refusal is not error and refusal.code.value.http >= 500:
                log.exception("%s %s", request.method, uri)
            return _error(refusal.code.value.http, refusal.message)

    def _body(self, request: Request) -> bytes:
        """The body, without its compression; empty if that is broken, which is no JSON either."""
        data = _read(request.environ, self.max_body_bytes)
        if "gzip" not in request.headers.get("Content-Encoding", ""):
            return data
        # Never more than the limit: a few kilobytes can hold gigabytes of zeros.
        unzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            plain = unzip.decompress(data, self.max_body_bytes + 1)
        except zlib.error:
            return b""
        if len(plain) > self.max_body_bytes:
            raise _TooLargeError
        return plain if unzip.eof else b""

    def _answer(
        self, request: Request, uri: str, target: _Target, data: bytes, call: Call
    ) -> bytes:
        if request.method == "OPTIONS":
            return _preflight(request)
        version = target.version.lstrip("0")
        if len(version) > 19 or int(version or 0) > MAX_VERSION:
            raise invalid_argument(f"Failed to convert version: {target.version} to numeric.")
        if target.found and not target.model:
            raise invalid_argument("Missing model name in request.")
        # Only the path ignores case: what follows the colon is looked up as it is.
        if target.action in _ACTIONS:
            return self._run(target, data, call)
        if target.part == "metadata":
            return self._metadata(target)
        if target.found and not target.action:
            return self._status(target)
        raise invalid_argument(f"Malformed request: {request.method} {uri}")

    def _run(self, target: _Target, data: bytes, call: Call) -> bytes:
        deadline = time.monotonic() + self.timeout_ms / 1000 if self.timeout_ms > 0 else None
        read, run = _ACTIONS[target.action]
        with self.at_work:
            body = json_text.parse(data)
            signature = json_text.signature_name(body)
            examples = read(body)  # before the model is looked for: a bad body is refused first
            with self._servable(target) as servable:
                call.version = servable.version
                return run(servable, signature, examples, deadline)

    def _servable(self, target: _Target):
        version = int(target.version) if target.version else None
        return self.repository.servable(target.model, version, target.label or None)

    def _metadata(self, target: _Target) -> bytes:
        with self._servable(target) as servable:
            message = grpc_api.metadata_message(servable)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        message.metadata[grpc_api.SIGNATURE_DEF].Unpack(signatures)
        metadata = {
            "model_spec": _as_dict(message.model_spec),
            "metadata": {grpc_api.SIGNATURE_DEF: _as_dict(signatures)},
        }
        return json.dumps(metadata, indent=1).encode()

    def _status(self, target: _Target) -> bytes:
        """Of all versions whatever the label, as in TensorFlow Serving."""
        version = int(target.version) if target.version else None
        versions = self.repository.status(target.model, version)
        return json.dumps(_as_dict(grpc_api.status_message(versions)), indent=1).encode()


def _predict(servable, signature: str, body: dict[str, Any], deadline: float | None) -> bytes:
    name = signature or DEFAULT_SIGNATURE
    definitions = servable.signature_definitions()
    if name not in definitions:
        raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
    inputs, form = json_tensors.inputs(body, definitions[name].inputs)
    return json_tensors.predictions(servable.predict(inputs, signature, deadline=deadline), form)


def _classify(servable, signature: str, examples: list[bytes], deadline: float | None) -> bytes:
    return json_examples.classifications(servable.classify(examples, signature, deadline))


def _regress(servable, signature: str, examples: list[bytes], deadline: float | None) -> bytes:
    return json_examples.regressions(servable.regress(examples, signature, deadline))


class _Action(NamedTuple):
    """How a body is read without knowing the model, and what is then done with it."""

    read: Callable[[dict[str, Any]], Any]
    run: Callable[[Any, str, Any, float | None], bytes]


_ACTIONS = {
    "predict": _Action(lambda body: body, _predict),  # its tensors depend on the signature
    "classify": _Action(json_examples.examples, _classify),
    "regress": _Action(json_examples.examples, _regress),
}


def _target(method: str, uri: str) -> _Target:
    """What the path says, percent-decoded; the query is part of the path, and so never matches."""
    match = _PATHS[method].fullmatch(uri) if method in _PATHS else None
    if not match:
        return _Target()
    parts = {name: urllib.parse.unquote(part) for name, part in match.groupdict("").items()}
    return _Target(**parts, found=True)


def _preflight(request: Request) -> bytes:
    if not re.search("https?://", request.headers.get("Origin", "")):
        raise invalid_argument("Origin header is missing in CORS preflight")
    return b""


def _as_dict(message: Message) -> dict[str, Any]:
    text = json_format.MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.loads(text, parse_float=_number)


def _number(text: str) -> float | int:
    """A signature's default value as C++'s protobuf writes it: 3, where Python's writes 3.0."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 1e15 else value


def _read(environ: dict[str, Any], most: int) -> bytes:
    stream, pieces, left = environ["wsgi.input"], [], most + 1
    if environ["wsgi.input_terminated"]:
        stream.maxlen = 2 * left  # of a chunk, which cheroot reads whole; sizes are counted too
    try:
        while left and (piece := stream.read(min(left, _PIECE_BYTES))):
            pieces.append(piece)
            left -= len(piece)
        if left:
            return b"".join(pieces)
        # Read on, within limits: a client that still writes would not see the answer.
        for _ in range(most // _PIECE_BYTES + 1):
            stream.read(_PIECE_BYTES)
    except (cheroot.errors.MaxSizeExceeded, OSError) as error:
        if isinstance(error, TimeoutError):
            raise  # cheroot answers 408
        raise _TooLargeError from error
    raise _TooLargeError


def _error(status: int, message: str) -> Response:
    return Response(json.dumps({"error": message}, indent=4), status, content_type=_JSON)


def _page(status: int, words: str) -> Response:
    page = f"<HTML><HEAD>\n<TITLE>{status} {words}</TITLE>\n</HEAD><BODY>\n<H1>{words}</H1>\n"
    return Response(page + "</BODY></HTML>\n", status, content_type=_HTML)


def _compress(request: Request, response: Response) -> None:
    body = response.get_data()
    if len(body) < _MIN_COMPRESSED or not request.accept_encodings["gzip"]:
        return
    response.set_data(gzip.compress(body, compresslevel=1, mtime=0))
    response.headers.update({"Content-Encoding": "gzip", "Vary": "Accept-Encoding"})


class _HttpServer(cheroot.wsgi.Server):
    keep_alive_conn_limit = _WAITING
    max_request_header_size = _MAX_HEADER_BYTES

    def process_conn(self, conn: cheroot.server.HTTPConnection) -> None:
        # A new connection waits for its first byte as idle ones do, and keeps no thread.
        if conn.last_used is not None:
            super().process_conn(conn)
        elif self._connections.can_add_keepalive_connection:  # type: ignore[attr-defined]
            self.put_conn(conn)
        else:  # or no file descriptors would be left, and cheroot would ask for one for ever
            with contextlib.suppress(OSError):
                cheroot.server.HTTPRequest(self, conn).simple_response("503 Service Unavailable")
            conn.close()

    @staticmethod
    def bind_socket(socket_: socket.socket, bind_addr: tuple[str, int]) -> socket.socket:
        try:
            socket_.bind(bind_addr)
        except OSError:
            socket_.close()
            raise
        return socket_

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        log.log(level, "%s", msg, exc_info=traceback)


class Server:
    """A running server."""

    def __init__(self, server: cheroot.wsgi.Server) -> None:
        """Serve with a prepared server, on a thread of its own."""
        self._server = server
        self.port: int = server.bind_addr[1]
        threading.Thread(target=server.serve, name="rest", daemon=True).start()

    def stop(self, grace_seconds: float) -> None:
        """Accept no more and return once all is answered, or after the grace."""
        if not self._server.ready:
            return
        self._server.shutdown_timeout = grace_seconds
        # Who keeps a connection is told with the next answer that it ends: cheroot would close it
        # over a request that has just come.
        kept = self._server._connections._selector  # type: ignore[attr-defined]
        kept.unregister(self._server.socket.fileno())
        self._server.socket.close()
        self._server.keep_alive_conn_limit = -1  # without a listening socket there are -1 of them
        end, looks = time.monotonic() + min(_LAST_ANSWER_SECONDS, grace_seconds), 0
        while looks < _QUIET_LOOKS and time.monotonic() < end:
            looks = 0 if len(kept) else looks + 1  # those that are being answered are not counted
            time.sleep(0.01)
        # cheroot waits for ever for a thread that outlasts the grace.
        stopping = threading.Thread(target=self._server.stop, name="rest-stop", daemon=True)
        stopping.start()
        stopping.join(grace_seconds + 1)


def start_server(
    repository: Repository,
    metrics: Metrics,
    *,
    port: int,
    threads: int,
    timeout_ms: int,
    cors: bool,
    metrics_path: str | None,
    max_body_bytes: int,
    access_log: AccessLog | None,
) -> Server:
    """Start to answer on all interfaces.

    Args:
        repository: whose models.
        metrics: counted into.
        port: 0 for a free one.
        threads: requests computed at a time, beside 64 that arrive or ask for something else; what
            1024 more connections cannot wait for is refused with 503.
        timeout_ms: what has not begun by then is not computed; 0 for no limit.
        cors: let browsers call from any site.
        metrics_path: where Prometheus finds the metrics; None for nowhere.
        max_body_bytes: of a request, uncompressed.
        access_log: called once a request.

    Raises:
        ConfigError: the port is in use.
    """
    application = _Application(
        repository,
        metrics,
        timeout_ms,
        cors,
        metrics_path,
        max_body_bytes,
        access_log,
        threading.Semaphore(threads),
    )
    server = _HttpServer(
        ("0.0.0.0", port),
        application,
        numthreads=threads + _RECEIVING,
        server_name="serving",
        request_queue_size=_WAITING,
        timeout=_IDLE_SECONDS,
        accepted_queue_size=_WAITING,
        accepted_queue_timeout=0,
    )
    try:
        server.prepare()
    except OSError as error:
        raise ConfigError(f"port {port} is in use: choose another with --rest_api_port") from error
    return Server(server)
