import dataclasses
import gc
import gzip
import http.client
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.config.file_system_storage_path_source_pb2 import (
    FileSystemStoragePathSourceConfig,
)

from serving import rest_api
from serving.engine import Label
from serving.errors import Code, ConfigError, ServingError
from serving.metrics import Metrics
from serving.models_config import ModelConfig
from serving.repository import Polling, Repository

TIMEOUT = 20
LIMIT = 20_000
METRICS = "/monitoring/prometheus/metrics"
PREDICT = "/v1/models/affine:predict"
BODY = b'{"instances": [1.0, 2.0]}'
BOTH = FileSystemStoragePathSourceConfig.ServableVersionPolicy(all={})


@dataclasses.dataclass
class Doubler:
    """A servable without TensorFlow: y = 2x; it can be held up, and can fail."""

    name: str
    version: int
    path: Path
    held: threading.Event | None = None
    entered: threading.Event = dataclasses.field(default_factory=threading.Event)
    error: Exception | None = None
    deadline: float | None = None
    examples: list[bytes] = dataclasses.field(default_factory=list)

    def signature_definitions(self) -> dict[str, meta_graph_pb2.SignatureDef]:
        x = meta_graph_pb2.TensorInfo(dtype=tf.float32.as_datatype_enum, name="x:0")
        x.tensor_shape.dim.add(size=-1)
        return {"serving_default": meta_graph_pb2.SignatureDef(inputs={"x": x})}

    def predict(self, inputs, signature="", output_filter=(), deadline=None):
        self.deadline = deadline
        self.entered.set()
        if self.held:
            assert self.held.wait(TIMEOUT)
        if self.error:
            raise self.error
        return {"y": inputs["x"] * 2}

    def classify(self, examples, signature="", deadline=None):
        self.examples = examples
        return [[Label("low", 0.7), Label("high", 0.3)] for _ in examples]

    def regress(self, examples, signature="", deadline=None):
        return [float(np.float32(0.1)) for _ in examples]


@dataclasses.dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Running:
    """A server and what it serves."""

    def __init__(self, folder: Path, **options) -> None:
        self.servables: dict[int, Doubler] = {}
        for version in (1, 2):
            (folder / "affine" / str(version)).mkdir(parents=True, exist_ok=True)
        self.stopped = threading.Event()
        self.metrics = Metrics()
        self.log: list[dict] = []
        repository = Repository(
            [ModelConfig("affine", folder / "affine", BOTH)], self._load, Polling(0), self.stopped
        )
        repository.start()
        defaults = {
            "port": 0,
            "threads": 4,
            "timeout_ms": 30_000,
            "cors": False,
            "metrics_path": METRICS,
            "max_body_bytes": LIMIT,
            "access_log": lambda **fields: self.log.append(fields),
        }
        self.server = rest_api.start_server(repository, self.metrics, **(defaults | options))

    def _load(self, name: str, version: int, path: Path) -> Doubler:
        self.servables[version] = Doubler(name, version, path)
        return self.servables[version]

    @property
    def servable(self) -> Doubler:
        return self.servables[2]

    def call(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=TIMEOUT)
        try:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, names)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def close(self) -> None:
        self.stopped.set()
        self.server.stop(1)


@pytest.fixture(scope="module")
def closing() -> Iterator[futures.Executor]:
    """Servers take half a second to stop; the next test need not wait."""
    with futures.ThreadPoolExecutor() as pool:
        yield pool


@pytest.fixture
def start(tmp_path: Path, closing: futures.Executor) -> Iterator[Callable[..., Running]]:
    started = []

    def make(**options) -> Running:
        started.append(Running(tmp_path, **options))
        return started[-1]

    yield make
    for running in started:
        closing.submit(running.close)


@pytest.fixture
def running(start) -> Running:
    return start()


def test_predict_classify_and_regress(running):
    answer = running.call("POST", PREDICT, BODY)
    assert (answer.status, answer.json) == (200, {"predictions": [2.0, 4.0]})
    assert answer.headers["Content-Type"] == "application/json"
    columns = running.call("POST", PREDICT, b'{"inputs": {"x": [1.0]}}')
    assert columns.json == {"outputs": [2.0]}
    examples = b'{"examples": [{"x": 1.0}]}'
    classified = running.call("POST", "/v1/models/affine:classify", examples)
    assert classified.json == {"results": [[["low", 0.7], ["high", 0.3]]]}
    sent = tf.train.Example.FromString(running.servable.examples[0])
    assert list(sent.features.feature["x"].float_list.value) == [1.0]
    assert running.call("POST", "/v1/models/affine:regress", examples).json == {"results": [0.1]}


def test_a_real_model_answers(repository, add_version):
    add_version(1, 2.0)
    served = repository()
    served.start()
    server = rest_api.start_server(
        served,
        Metrics(),
        port=0,
        threads=1,
        timeout_ms=0,
        cors=False,
        metrics_path=None,
        max_body_bytes=LIMIT,
        access_log=None,
    )
    try:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)
        connection.request("POST", PREDICT, '{"inputs": [0.1]}')
        assert json.load(connection.getresponse()) == {"outputs": [1.2]}
        # On the same connection.
        body = '{"signature_name": "pair", "instances": [{"a": [1, 2], "b": 3}]}'
        connection.request("POST", PREDICT, body)
        assert json.load(connection.getresponse()) == {
            "predictions": [{"sums": 6.0, "products": [3.0, 6.0]}]
        }
        connection.request("GET", "/v1/models/affine/metadata")
        metadata = json.load(connection.getresponse())["metadata"]["signature_def"]
        assert set(metadata["signature_def"]) >= {"serving_default", "pair"}
        connection.close()
    finally:
        server.stop(1)


@pytest.mark.parametrize(
    "path", ["/v1/models/affine/versions/1:predict", "/V1/Models/aff%69ne/Versions/001:predict"]
)
def test_the_path_chooses_the_version(running, path: str):
    assert running.call("POST", path, BODY).status == 200
    assert running.servables[1].entered.is_set()
    assert not running.servables[2].entered.is_set()


def test_status_and_metadata(running):
    status = running.call("GET", "/v1/models/affine").json["model_version_status"]
    ok = {"error_code": "OK", "error_message": ""}
    assert {"version": "2", "state": "AVAILABLE", "status": ok} in status
    answer = running.call("GET", "/v1/models/affine/metadata").json
    assert answer["model_spec"] == {"name": "affine", "version": "2", "signature_name": ""}
    signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert signature["inputs"]["x"]["tensor_shape"]["dim"] == [{"size": "-1", "name": ""}]


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/v1/models/nope:predict", 404, "nope"),
        ("POST", "/v1/models/affine/versions/9:predict", 404, "affine"),
        ("POST", "/v1/models/affine/labels/nope:predict", 400, "nope"),
        ("GET", "/v1/models/nope", 404, "nope"),
        ("GET", "/v1/models/nope/metadata", 404, "nope"),
        ("GET", "/v1/models/affine/versions/99999999999999999999", 400, "numeric"),
        ("GET", "/v1/models/affine/versions/" + "9" * 9000, 400, "numeric"),
        ("GET", "/v1/models/affine/versions/x", 400, "Malformed request: GET /v1"),
        ("GET", "/v1/models", 400, "Missing model name"),
        ("GET", "/v1/models/", 400, "Malformed"),
        ("GET", "/v1/models/affine/metadata/", 400, "Malformed"),
        ("GET", PREDICT, 400, "Malformed"),
        ("POST", PREDICT + "/", 400, "Malformed"),
        ("POST", PREDICT + "?a=b", 400, "Malformed"),
        ("POST", "/v1/models/affine:PREDICT", 400, "Malformed"),
        ("POST", "/v1/models/affine:explain", 400, "Malformed"),
        ("POST", "/v1/models/affine/metadata", 400, "Malformed"),
        ("PATCH", PREDICT, 400, "Malformed request: PATCH"),
        ("OPTIONS", PREDICT, 400, "Origin"),
    ],
)
def test_refused_paths(running, method: str, path: str, status: int, words: str):
    answer = running.call(method, path, BODY)
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/json"
    assert list(answer.json) == ["error"]
    assert words in answer.json["error"]


@pytest.mark.parametrize("path", ["/", "/nope", "/v1", "/v2/models/affine", "/v10/models"])
def test_other_paths_are_not_found(running, path: str):
    answer = running.call("GET", path)
    assert (answer.status, answer.headers["Content-Type"]) == (404, "text/html")


@pytest.mark.parametrize("path", ["/nope|x", "/v1/models/aff%ZZne", METRICS + "?a=b"])
def test_what_is_no_path_is_a_bad_request(running, path: str):
    answer = running.call("GET", path)
    assert answer.status == 400
    assert answer.headers["Content-Type"].startswith("text/")


def test_head_has_no_body(running):
    answer = running.call("HEAD", "/v1/models/affine")
    assert (answer.status, answer.body) == (400, b"")


def test_trace_is_not_implemented(running):
    assert running.call("TRACE", "/v1/models/affine").status == 501


def test_a_bad_body_is_refused_before_the_model_is_looked_for(running):
    answer = running.call("POST", "/v1/models/nope:predict", b"{")
    assert answer.status == 400
    assert "JSON Parse error" in answer.json["error"]
    answer = running.call("POST", "/v1/models/nope:classify", b'{"examples": []}')
    assert (answer.status, "empty array" in answer.json["error"]) == (400, True)


def test_unknown_signature(running):
    body = b'{"instances": [1.0], "signature_name": "nope"}'
    answer = running.call("POST", PREDICT, body)
    assert (answer.status, '"nope"' in answer.json["error"]) == (400, True)


@pytest.mark.parametrize("code", [Code.NOT_FOUND, Code.UNIMPLEMENTED, Code.UNAVAILABLE])
def test_an_error_has_its_code_s_status(running, code: Code):
    running.servable.error = ServingError(code, 'a "quoted" reason')
    answer = running.call("POST", PREDICT, BODY)
    assert answer.status == code.value.http
    assert answer.json == {"error": 'a "quoted" reason'}


def test_an_unforeseen_error_is_internal_and_the_server_lives(running):
    running.servable.error = ZeroDivisionError("oh")
    assert running.call("POST", PREDICT, BODY).status == 500
    running.servable.error = None
    assert running.call("POST", PREDICT, BODY).status == 200


@pytest.mark.parametrize(("timeout_ms", "limited"), [(5000, True), (0, False)])
def test_the_deadline_is_passed_on(start, timeout_ms: int, limited: bool):
    running = start(timeout_ms=timeout_ms)
    before = time.monotonic()
    running.call("POST", PREDICT, BODY)
    deadline = running.servable.deadline
    assert (deadline is not None) == limited
    if limited:
        assert before + 5 <= deadline <= time.monotonic() + 5


def test_too_large_a_body_names_limit_and_flag(running):
    # More than sockets buffer: a server that hung up at once would reset the connection.
    for body in (b" " * (LIMIT + 1), b" " * 2 * LIMIT):
        answer = running.call("POST", PREDICT, body)
        assert answer.status == 413
        assert str(LIMIT) in answer.json["error"]
        assert "--rest_api_max_body_bytes" in answer.json["error"]
    assert running.call("POST", PREDICT, BODY.ljust(LIMIT)).status == 200


def test_gzip_bodies(running):
    zipped = gzip.compress(BODY)
    answer = running.call("POST", PREDICT, zipped, Content_Encoding="gzip")
    assert answer.json == {"predictions": [2.0, 4.0]}
    for broken in (b"not gzip", zipped[:-9], b""):
        answer = running.call("POST", PREDICT, broken, Content_Encoding="gzip")
        assert (answer.status, "empty" in answer.json["error"]) == (400, True)


def test_a_gzip_bomb_is_not_unpacked(running):
    bomb = gzip.compress(b" " * 10_000_000)
    assert len(bomb) < LIMIT
    assert running.call("POST", PREDICT, bomb, Content_Encoding="gzip").status == 413


def test_chunked_bodies(running):
    for body, status in ((BODY, 200), (b" " * (LIMIT + 1), 413)):
        connection = http.client.HTTPConnection("127.0.0.1", running.server.port, timeout=TIMEOUT)
        connection.request("POST", PREDICT, iter([body[:10], body[10:]]), encode_chunked=True)
        assert connection.getresponse().status == status
        connection.close()


def test_a_broken_chunk_is_refused(running):
    address = ("127.0.0.1", running.server.port)
    with socket.create_connection(address, TIMEOUT) as connection:
        head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode() + b"zz\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_answers_are_compressed_when_asked_and_large(running):
    body = json.dumps({"instances": [0.5] * 1000}).encode()
    plain = running.call("POST", PREDICT, body)
    assert plain.headers["Content-Encoding"] is None
    packed = running.call("POST", PREDICT, body, Accept_Encoding="br, gzip")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert len(packed.body) < len(plain.body) / 10
    assert gzip.decompress(packed.body) == plain.body
    refused = running.call("POST", PREDICT, body, Accept_Encoding="gzip;q=0")
    assert refused.body == plain.body
    small = running.call("POST", PREDICT, BODY, Accept_Encoding="gzip")
    assert small.json == {"predictions": [2.0, 4.0]}


@pytest.mark.parametrize("cors", [True, False])
def test_cors(start, cors: bool):
    running = start(cors=cors)
    origin = {"Origin": "http://example.com"}
    answers = [
        running.call("OPTIONS", PREDICT, **origin),
        running.call("POST", PREDICT, BODY, **origin),
        running.call("POST", PREDICT, b"{"),
    ]
    assert [answer.status for answer in answers] == [200, 200, 400]
    for answer in answers:
        assert answer.headers["Access-Control-Allow-Origin"] == ("*" if cors else None)
        assert answer.headers["Access-Control-Allow-Methods"] == ("POST, GET" if cors else None)


def test_requests_are_counted(running):
    running.call("POST", PREDICT, BODY)
    running.call("POST", PREDICT, b"{")
    running.call("GET", "/v1/models/affine")
    page = running.call("GET", METRICS)
    assert page.headers["Content-Type"].startswith("text/plain")
    lines = page.body.decode().splitlines()
    prefix = ":tensorflow:serving:request_"
    for status, count in (("OK", 2), ("INVALID_ARGUMENT", 1)):
        assert f'{prefix}count{{model_name="affine",status="{status}"}} {count}.0' in lines
    for api in ("predict", ""):
        labels = f'API="{api}",entrypoint="REST",model_name="affine"'
        assert f"{prefix}latency_count{{{labels}}} 1.0" in lines


def test_metrics_can_be_off(start):
    assert start(metrics_path=None).call("GET", METRICS).status == 404


def test_each_request_is_logged_once(running):
    running.call("POST", PREDICT, BODY)
    running.call("GET", "/nope?a=b")
    seconds = [entry.pop("seconds") for entry in running.log]
    assert all(0 <= value < TIMEOUT for value in seconds)
    assert running.log == [
        {"entrypoint": "REST", "method": "POST", "path": PREDICT, "status": 200},
        {"entrypoint": "REST", "method": "GET", "path": "/nope?a=b", "status": 404},
    ]


def test_connections_are_kept(running):
    connection = http.client.HTTPConnection("127.0.0.1", running.server.port, timeout=TIMEOUT)
    connection.connect()
    port = connection.sock.getsockname()[1]
    for body in (BODY, b"{", BODY):
        connection.request("POST", PREDICT, body)
        connection.getresponse().read()
        assert connection.sock.getsockname()[1] == port
    connection.close()


def test_idle_connections_hold_no_thread(start):
    running = start(threads=1)
    address = ("127.0.0.1", running.server.port)
    idle = [socket.create_connection(address, TIMEOUT) for _ in range(20)]
    assert running.call("POST", PREDICT, BODY).status == 200
    for connection in idle:
        connection.close()


def test_slow_senders_and_computing_hold_nobody_else_up(start):
    running = start(threads=1)
    address = ("127.0.0.1", running.server.port)
    slow = [socket.create_connection(address, TIMEOUT) for _ in range(20)]
    for connection in slow:
        connection.sendall(
            b"POST " + PREDICT.encode() + b" HTTP/1.1\r\nContent-Length: 20\r\n\r\n{"
        )
    assert running.call("POST", PREDICT, BODY).status == 200
    running.servable.held = threading.Event()
    running.servable.entered.clear()
    with futures.ThreadPoolExecutor() as pool:
        calls = [pool.submit(running.call, "POST", PREDICT, BODY) for _ in range(2)]
        assert running.servable.entered.wait(TIMEOUT)
        assert running.call("GET", "/v1/models/affine").status == 200
        assert not any(call.done() for call in calls)
        running.servable.held.set()
        assert [call.result(TIMEOUT).status for call in calls] == [200, 200]
    for connection in slow:
        connection.close()


# cheroot leaves connections that it refuses for the garbage collection to close.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_more_than_can_wait_is_refused(start, monkeypatch):
    monkeypatch.setattr(rest_api, "_WAITING", 1)
    monkeypatch.setattr(rest_api, "_RECEIVING", 0)
    running = start(threads=1)
    running.servable.held = threading.Event()
    with futures.ThreadPoolExecutor() as pool:
        calls = [pool.submit(running.call, "POST", PREDICT, BODY)]
        assert running.servable.entered.wait(TIMEOUT)
        calls += [pool.submit(running.call, "POST", PREDICT, BODY) for _ in range(3)]
        refused = itertools.islice(futures.as_completed(calls, TIMEOUT), 2)
        assert [call.result().status for call in refused] == [503, 503]
        running.servable.held.set()
        assert sorted(call.result(TIMEOUT).status for call in calls) == [200, 200, 503, 503]
    running.server.stop(TIMEOUT)
    gc.collect()


def test_connections_that_ask_for_nothing_are_limited(start, monkeypatch):
    running = start()
    monkeypatch.setattr(rest_api._HttpServer, "keep_alive_conn_limit", 4)
    address = ("127.0.0.1", running.server.port)
    idle = [socket.create_connection(address, TIMEOUT) for _ in range(8)]
    assert {connection.recv(12) for connection in idle[4:]} == {b"HTTP/1.1 503"}
    for connection in idle:
        connection.close()
    until = time.monotonic() + TIMEOUT
    while not _answered(running):
        assert time.monotonic() < until


def _answered(running: Running) -> bool:
    try:
        return running.call("POST", PREDICT, BODY).status == 200
    except ConnectionError:  # refused before all was sent
        return False


def wait_until_refused(port: int) -> None:
    until = time.monotonic() + TIMEOUT
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), TIMEOUT).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.05)
    pytest.fail("the server still accepts connections")


def test_stop_finishes_what_is_running_and_accepts_no_more(start):
    running = start()
    running.servable.held = threading.Event()
    with futures.ThreadPoolExecutor() as pool:
        call = pool.submit(running.call, "POST", PREDICT, BODY)
        assert running.servable.entered.wait(TIMEOUT)
        stopping = pool.submit(running.server.stop, TIMEOUT)
        with pytest.raises(futures.TimeoutError):
            stopping.result(0.3)
        wait_until_refused(running.server.port)
        running.servable.held.set()
        assert call.result(TIMEOUT).json == {"predictions": [2.0, 4.0]}
        stopping.result(TIMEOUT)


def test_stop_loses_no_request_of_a_connection_that_is_kept(start):
    running, stopping, answered = start(), threading.Event(), threading.Barrier(5)

    def ask() -> None:
        """Requests until the server says that the connection ends; `answered` when two were."""
        connection = http.client.HTTPConnection("127.0.0.1", running.server.port, timeout=TIMEOUT)
        asked = 0
        while True:
            connection.request("POST", PREDICT, BODY)
            answer = connection.getresponse()
            assert answer.status == 200
            answer.read()
            asked += 1
            if connection.sock is None:
                assert stopping.is_set()
                return
            if asked == 2:
                answered.wait(TIMEOUT)

    with futures.ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(ask) for _ in range(4)]
        answered.wait(TIMEOUT)
        stopping.set()
        running.server.stop(TIMEOUT)
        for caller in callers:
            caller.result(TIMEOUT)


def test_stop_does_not_outlast_the_grace(start):
    running = start()
    running.servable.held = threading.Event()
    with futures.ThreadPoolExecutor() as pool:
        call = pool.submit(running.call, "POST", PREDICT, BODY)
        assert running.servable.entered.wait(TIMEOUT)
        started = time.monotonic()
        running.server.stop(0.2)
        assert time.monotonic() - started < 5
        running.servable.held.set()
        call.result(TIMEOUT)


def test_a_port_in_use_is_named_with_its_flag(start, running):
    with pytest.raises(ConfigError, match=rf"{running.server.port}.*--rest_api_port"):
        start(port=running.server.port)
