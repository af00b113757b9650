"""Both clients, the same tests, against real gRPC."""

import io
import itertools
import pickle
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import tfs_client
from tfs_client import (
    AccessDeniedError,
    Classification,
    Hooks,
    InternalError,
    InvalidImageError,
    InvalidRequestError,
    Label,
    Metadata,
    NotFoundError,
    NotReadyError,
    Regression,
    Retry,
    ServerError,
    Signature,
    TensorSpec,
    TFSError,
    Timeout,
    UnavailableError,
    VersionStatus,
)
from tfs_client._errors import BY_CODE, Asked
from tfs_client.testing import FakeServer

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def by_content(image):
    """A class named after the image, so that answers can be told apart; `junk` is none."""
    if isinstance(image, np.ndarray):
        return [(f"pixels {image.ravel()[0]}", 1.0)]
    return None if image == b"junk" else [(image.decode(), 0.75), ("other", 0.25)]


@pytest.fixture
def server():
    with FakeServer(by_content, versions=(1, 7), labels={"stable": 1}) as started:
        yield started


def messages(server, method="Predict"):
    return [request.message for request in server.requests if request.method == method]


# --- images


def test_whatever_holds_an_image_is_one(connect, server, tmp_path):
    client = connect(server.address)
    path = tmp_path / "a.png"
    path.write_bytes(b"content")
    expected = Classification((Label("content", 0.75), Label("other", 0.25)), "googlenet", 7)
    with path.open("rb") as file:
        for image in (str(path), path, b"content", bytearray(b"content"), file):
            assert client.classify(image) == expected
    assert client.classify(memoryview(b"content")) == expected
    assert client.classify(io.BytesIO(b"content")) == expected
    assert client.classify(PIXELS).label == "pixels 0"
    assert expected.label == "content"
    assert expected.score == 0.75


def test_a_pillow_image_is_sent_as_pixels(connect, server, tmp_path):
    image = pytest.importorskip("PIL.Image")
    picture = image.fromarray(PIXELS)
    client = connect(server.address)
    assert client.classify(picture).label == "pixels 0"
    assert client.classify([picture.convert("L").convert("RGBA")])[0].label.startswith("pixels")
    picture.save(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) - 30])
    with (
        image.open(tmp_path / "cut.png") as cut,
        pytest.raises(InvalidImageError, match=r"cut\.png: cannot be read"),
    ):
        client.classify(cut)


def test_many_images_keep_their_order_and_fill_requests(connect, server):
    client = connect(server.address, batch_size=4)
    images = [str(i).encode() for i in range(10)]
    mixed = [images[0], PIXELS, *images[1:], np.stack([PIXELS + 1])[0]]
    answers = client.classify(mixed)
    assert [a.label for a in answers] == ["0", "pixels 0", *map(str, range(1, 10)), "pixels 1"]
    assert [a.position for a in answers] == list(range(12))
    sizes = [x.tensor_shape.dim[0].size for m in messages(server) for x in m.inputs.values()]
    assert sorted(sizes) == [2, 2, 4, 4]
    assert client.classify([]) == []
    assert [a.label for a in client.classify(np.stack([PIXELS, PIXELS + 9]))] == [
        "pixels 0",
        "pixels 9",
    ]


def test_a_request_has_no_more_bytes_than_allowed_but_for_one_large_image(connect, server):
    client = connect(server.address, max_request_bytes=1000)
    images = [bytes([65 + i]) * size for i, size in enumerate((400, 400, 400, 5000, 1))]
    assert [a.label.encode() for a in client.classify(images)] == images
    sizes = sorted(len(m.inputs["image_bytes"].string_val) for m in messages(server))
    assert sizes == [1, 1, 1, 2]


def test_a_bad_image_has_its_error_in_its_place(connect, server, tmp_path):
    missing = str(tmp_path / "missing.png")
    images = [b"a", b"junk", missing, b"b", np.zeros((2, 2)), io.StringIO("text")]
    client = connect(server.address)
    answers = client.classify(images, errors="return")
    assert [getattr(a, "label", type(a)) for a in answers] == [
        "a", InvalidImageError, InvalidImageError, "b", InvalidImageError, InvalidImageError,
    ]  # fmt: skip
    assert [a.position for a in answers] == list(range(6))
    assert "image 1: is not a JPEG" in str(answers[1])
    assert f"{missing}: cannot be read: No such file" in str(answers[2])
    assert "not float64" in str(answers[4])
    assert "open it in mode 'rb'" in str(answers[5])
    with pytest.raises(InvalidImageError, match="image 1"):
        client.classify(images)
    with pytest.raises(InvalidImageError, match="image 0"):
        client.classify(b"junk")
    with pytest.raises(ValueError, match="'ignore'"):
        client.classify(images, errors="ignore")


def test_a_failed_request_is_the_error_of_its_images(connect, server):
    client = connect(server.address, batch_size=2, in_flight=1)
    server.fail(None)
    server.fail(grpc.StatusCode.INTERNAL)
    answers = client.classify([b"a", b"b", b"c", b"d", b"e"], errors="return")
    assert [isinstance(a, ServerError) for a in answers] == [False, False, True, True, False]
    server.fail(grpc.StatusCode.INTERNAL)
    with pytest.raises(ServerError):
        client.classify([b"a", b"b", b"c"])


def test_a_stream_is_read_as_it_is_answered(connect, server):
    asked = []

    def endless():
        for i in itertools.count():
            asked.append(i)
            yield str(i).encode()

    client = connect(server.address, batch_size=4, in_flight=3)
    answers = client.classify_iter(endless())
    assert [next(answers).label for _ in range(40)] == [str(i) for i in range(40)]
    assert len(asked) <= 40 + 4 * (3 + 2)
    answers.close()


def test_one_odd_image_does_not_hold_up_a_stream(connect, server):
    client = connect(server.address, batch_size=4, in_flight=2)
    images = itertools.chain([PIXELS], (str(i).encode() for i in range(100)))
    answers = client.classify_iter(images)
    assert next(answers).label == "pixels 0"
    assert next(images) in (b"%d" % i for i in range(40))  # long before the stream's end
    assert len(list(answers)) == 99


def test_answers_may_come_as_they_come(connect, server):
    client = connect(server.address, batch_size=1, in_flight=2)
    server.fail(None, delay=0.5)
    images = [str(i).encode() for i in range(20)]
    answers = list(client.classify_iter(images, ordered=False))
    assert sorted(a.position for a in answers) == list(range(20))
    assert [a.position for a in answers] != list(range(20))  # one of the first two is late
    assert all(a.label == str(a.position) for a in answers)
    assert [a.position for a in client.classify_iter(images)] == list(range(20))


def test_no_more_requests_are_under_way_than_allowed(connect):
    lock, now, most = threading.Lock(), [0], [0]

    def slow(_):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return [("x", 1.0)]

    with FakeServer(slow) as server:
        list(connect(server.address, batch_size=1, in_flight=3).classify_iter([b"x"] * 30))
    assert 2 <= most[0] <= 3


def test_an_iterator_that_raises_raises_through(connect, server):
    def broken():
        yield from [b"x"] * 5
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        connect(server.address, batch_size=2).classify(broken())


def test_answers_due_before_an_error_of_the_iterator_are_handed_out(connect, server):
    def broken():
        yield from (str(i).encode() for i in range(6))
        raise RuntimeError("no more")

    answers = connect(server.address, batch_size=4).classify_iter(broken())
    assert [next(answers).label for _ in range(6)] == [str(i) for i in range(6)]
    with pytest.raises(RuntimeError, match="no more"):
        next(answers)


def test_a_stream_of_bad_images_is_handed_out_as_it_comes(connect, server):
    client = connect(server.address, batch_size=4)
    images = itertools.chain([b"good"], itertools.repeat("/no/such.png"))
    answers = client.classify_iter(images, errors="return")
    assert next(answers).label == "good"
    assert isinstance(next(answers), InvalidImageError)
    answers.close()
    with pytest.raises(InvalidImageError):
        next(client.classify_iter(itertools.repeat("/no/such.png")))


def test_one_array_may_hold_one_picture_after_the_other(connect, server):
    def camera():
        frame = np.zeros((2, 2, 3), np.uint8)
        for i in range(5):
            frame[:] = i
            yield frame

    labels = [answer.label for answer in connect(server.address).classify(camera())]
    assert labels == [f"pixels {i}" for i in range(5)]


def test_one_image_is_no_stream(connect, server):
    client = connect(server.address)
    for image in ("a.png", b"a", io.BytesIO(b"a"), PIXELS):
        with pytest.raises(TypeError, match="is one image: use classify"):
            list(client.classify_iter(image))


def test_a_client_that_is_closed_meanwhile_says_so(connect, server):
    client = connect(server.address, batch_size=1, in_flight=1)
    answers = client.classify_iter([b"x"] * 3, errors="return")
    next(answers)
    client.close()
    assert all(isinstance(answer, TFSError) for answer in answers)
    other = connect(server.address)
    answers = other.classify_iter([b"x"] * 3)
    other.close()
    with pytest.raises(TFSError, match="is closed"):
        next(answers)


def test_an_answer_that_makes_no_sense_is_the_servers_error(connect):
    def short(*_):
        return {"classes": [["a"]], "scores": [[1.0]], "valid": [True]}

    with FakeServer(predict=short) as server:
        client = connect(server.address)
        with pytest.raises(InternalError, match="its answer cannot be read"):
            client.classify([b"a", b"b"])
        answers = client.classify([b"a", b"b"], errors="return")
        assert [type(answer) for answer in answers] == [InternalError] * 2


# --- other methods


@pytest.mark.parametrize(
    "name",
    ["float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16",
     "uint32", "uint64", "bool", "complex64", "complex128", "bfloat16", "float8_e5m2"],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 3)])
def test_every_dtype_goes_and_comes_back(connect, server, name, shape):
    if name in ("bfloat16", "float8_e5m2"):
        dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), name))
    else:
        dtype = np.dtype(name)
    x = np.arange(1, 1 + int(np.prod(shape)), dtype=np.float32).reshape(shape).astype(dtype)
    y = connect(server.address).predict({"x": x}, signature="echo")["x"]
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    np.testing.assert_array_equal(y, x)


def test_arrays_of_any_layout(connect, server):
    client = connect(server.address)
    x = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    for given in (x.T, x[:, ::2], x.astype(">i4"), x[..., ::-1]):
        np.testing.assert_array_equal(client.predict({"x": given})["x"], given)


def test_what_people_write_becomes_tensors(connect, server):
    client = connect(server.address)
    given = {"f": [1.5, 2], "i": 3, "l": 2**40, "b": [True], "s": "ä", "t": [["a"], [b"\xff\0"]]}
    answer = client.predict(given, signature="echo", outputs=["f", "i", "l", "b", "s", "t"])
    assert {k: v.dtype.name for k, v in answer.outputs.items()} == {
        "f": "float32", "i": "int32", "l": "int64", "b": "bool", "s": "object", "t": "object",
    }  # fmt: skip
    assert answer["s"].item() == "ä".encode()
    assert answer["t"].tolist() == [[b"a"], [b"\xff\0"]]
    assert (answer.model, answer.version) == ("googlenet", 7)
    assert set(client.predict(given, outputs=["f"]).outputs) == {"f"}
    with pytest.raises(TypeError, match=r"input 'x': .*dict"):
        client.predict({"x": {}})
    with pytest.raises(ValueError, match="input 'x'"):
        client.predict({"x": [[1], [2, 3]]})


def test_the_model_version_and_label_are_the_clients_or_the_calls(connect, server):
    client = connect(server.address)
    assert client.classify(b"a").version == 7
    assert client.classify(b"a", version=1).version == 1
    assert client.classify([b"a"], version_label="stable")[0].version == 1
    pinned = connect(server.address, version_label="stable")
    assert pinned.classify(b"a").version == 1
    assert pinned.classify(b"a", version=7).version == 7
    with pytest.raises(NotFoundError, match="Latest") as caught:
        pinned.classify(b"a", model="nope")  # the client's version is of the client's model
    assert (caught.value.model, caught.value.version) == ("nope", None)
    with pytest.raises(InvalidRequestError, match="canary") as caught:
        client.classify(b"a", version_label="canary")
    assert caught.value.version == "canary"
    for bad in ({"version": 1, "version_label": "stable"},):
        with pytest.raises(ValueError, match="give one of them"):
            client.status(**bad)
        with pytest.raises(ValueError, match="give one of them"):
            connect(server.address, **bad)


def test_regress_and_multi_inference(connect):
    def total(features):
        return sum(features["x"]) + len(features.get("name", ()))

    with FakeServer(by_content, regress=total) as server:
        client = connect(server.address)
        examples = [{"x": [1.5, 2.0], "name": "n"}, {"x": 3}]
        assert client.regress(examples, signature="r") == Regression((4.5, 3.0), "googlenet", 1)
        (request,) = messages(server, "Regress")
        features = request.input.example_list.examples[0].features.feature
        assert list(features["name"].bytes_list.value) == [b"n"]
        assert list(features["x"].float_list.value) == [1.5, 2.0]
        assert request.model_spec.signature_name == "r"
        both = client.multi_inference(
            [{"x": 1, "image/encoded": b"cat"}], {"c": "classify", "r": "regress"}
        )
        assert both["c"][0].label == "cat"
        assert both["r"].values == (1.0,)
        with pytest.raises(ValueError, match="must be classify or regress"):
            client.multi_inference([], {"c": "predict"})
        with pytest.raises(TypeError, match="feature 'x'"):
            client.regress([{"x": {}}])


def test_status_metadata_and_waiting(connect, server):
    client = connect(server.address)
    assert client.status() == [VersionStatus(7, "AVAILABLE", ""), VersionStatus(1, "AVAILABLE", "")]
    assert client.status(version=1) == [VersionStatus(1, "AVAILABLE", "")]
    metadata = client.metadata(version_label="stable")
    assert isinstance(metadata, Metadata)
    assert (metadata.model, metadata.version) == ("googlenet", 1)
    assert metadata.signatures["predict_images"] == Signature(
        "tensorflow/serving/predict", {"images": TensorSpec("uint8", (-1, -1, -1, 3))}, {}
    )
    assert client.wait_until_ready() == 7
    assert client.wait_until_ready(version=1) == 1
    started = time.monotonic()
    with pytest.raises(NotReadyError, match=r"nope: not available in 0\.3 s: .*Latest\(nope\)"):
        client.wait_until_ready(0.3, model="nope")
    assert time.monotonic() - started < 2


def test_waiting_outlives_what_may_pass(connect, server):
    client = connect(server.address)
    server.fail(grpc.StatusCode.RESOURCE_EXHAUSTED)
    server.fail(grpc.StatusCode.CANCELLED)
    server.fail(None, delay=3.0)
    started = time.monotonic()
    assert client.wait_until_ready(20) == 7
    assert time.monotonic() - started < 4
    server.fail(grpc.StatusCode.UNAUTHENTICATED)
    with pytest.raises(AccessDeniedError):
        client.wait_until_ready(20)
    assert client.wait_until_ready(0) == 7


def test_waiting_ends_when_a_server_comes(connect):
    server = FakeServer()
    with server:
        pass
    client = connect(server.address)
    threading.Timer(0.5, server.start).start()
    assert client.wait_until_ready(20) == 1
    server.stop()


def test_a_configuration_is_sent_as_it_is_written(connect, server):
    text = """model_config_list { config {
      name: "m" base_path: "/models/m" model_platform: "tensorflow"
      model_version_policy { specific { versions: 1 versions: 2 } }
      version_labels { key: "stable" value: 1 }
    } }"""
    client = connect(server.address)
    assert client.reload_config(text) is None
    (request,) = messages(server, "HandleReloadConfigRequest")
    (model,) = request.config.model_config_list.config
    assert list(model.model_version_policy.specific.versions) == [1, 2]
    assert model.version_labels["stable"] == 1
    with pytest.raises(TFSError, match=r"not a models\.config: .*nonsense"):
        client.reload_config("nonsense")


# --- errors


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.name != "OK"])
def test_every_status_is_a_documented_error(connect, server, code):
    server.fail(code, "words", times=9)
    with pytest.raises(ServerError) as caught:
        connect(server.address).predict({"x": 1}, signature="s", version=1)
    error = caught.value
    assert type(error) is BY_CODE[code]
    assert code.name in tfs_client._errors.__doc__
    assert (error.code, error.details, error.address) == (code, "words", server.address)
    assert (error.model, error.version, error.signature) == ("googlenet", 1, "s")
    assert error.advice in str(error)
    assert "words" in str(error)
    assert isinstance(error.__cause__, grpc.RpcError)
    assert error.attempts == (4 if code in Retry().codes else 1)


def test_no_server_is_typed_and_says_what_to_do(connect):
    with FakeServer() as server:
        address = server.address
    with pytest.raises(UnavailableError, match="is the server running") as caught:
        connect(address).classify(b"a")
    assert caught.value.attempts == 4


def test_a_closed_client_says_so(connect, server):
    client = connect(server.address)
    client.classify(b"a")
    client.close()
    with pytest.raises(TFSError, match="this client is closed"):
        client.status()


@pytest.mark.parametrize(
    "address",
    [
        "",
        "localhost",
        "localhost:",
        ":8500",
        "localhost:99999",
        "a:b",
        ["a:1", "b"],
        "::1",
        "fe80::1",
        "a:1,b:1",
        " localhost:1",
        "localhost:８５００",
    ],
)
def test_an_address_that_is_none_is_named(connect, address):
    with pytest.raises(TFSError, match="is not host:port"):
        connect(address)
    with pytest.raises(TFSError, match="no address"):
        connect([])


@pytest.mark.parametrize(
    "settings",
    [{"batch_size": 0}, {"in_flight": 0}, {"max_request_bytes": 0}, {"hedge": 0.0},
     {"connections": 0}, {"keepalive": 1.0}, {"timeout": 0}, {"timeout": 1e9}],
)  # fmt: skip
def test_a_setting_out_of_its_range_is_named(connect, settings):
    (name,) = settings
    with pytest.raises(ValueError, match=name):
        connect("localhost:1", **settings)


def test_errors_go_from_process_to_process():
    asked = Asked("m", "stable", "s")
    for error in (
        InvalidImageError("a.png", "is none", 3),
        NotReadyError("a:1", "m", 2.0, "nothing"),
        NotFoundError(grpc.StatusCode.NOT_FOUND, "words", "a:1", asked, 2),
    ):
        back = pickle.loads(pickle.dumps(error))
        assert type(back) is type(error)
        assert str(back) == str(error)
        assert vars(back) == vars(error)


def test_a_mistake_is_named_not_ignored(connect, server):
    client = connect(server.address)
    for mistaken, words in (
        (lambda: client.status(timout=1), "'timout'"),
        (lambda: client.classify([b"a"], ordered=False), "'ordered'"),
        (lambda: client.predict({"x": 1}, outputs="y"), "outputs is the text 'y'"),
        (lambda: client.predict([1, 2]), "inputs must be a dict by name"),
        (lambda: client.predict({1: 2}), "inputs must be a dict by name"),
        (lambda: client.regress({"x": 1}), "one example: give a list"),
        (lambda: client.regress(["x"]), "each of the examples must be a dict"),
        (lambda: client.multi_inference([{"x": 1}], ["a"]), "tasks must be a dict"),
    ):
        with pytest.raises(TypeError, match=words):
            mistaken()
    for metadata in ([("Team", "a")], [("team", "a\n")], [("team", "ä")], [("a b", "a")]):
        with pytest.raises(ValueError, match="metadata '"):
            client.status(metadata=metadata)
    with pytest.raises(ValueError, match="input 'x'"):
        client.predict({"x": "\ud800"})
    client.status(metadata=None, version=None, version_label=None, model=None, timeout=None)


# --- hooks


def test_a_hook_that_raises_does_not_hang_a_call(connect, server):
    def broken(_):
        raise RuntimeError("hook")

    client = connect(server.address, hooks=Hooks(on_response=broken))
    with pytest.raises(RuntimeError, match="hook"):
        client.classify(b"a", timeout=5)


def test_hooks_are_told_of_each_attempt(connect, server):
    told = []
    client = connect(server.address, hooks=Hooks(told.append, told.append))
    server.fail(details="busy")
    client.classify(b"a")
    first, failed, second, answered = told
    assert first.method == "/tensorflow.serving.PredictionService/Predict"
    assert (first.model, first.address, first.attempt) == ("googlenet", server.address, 1)
    assert first.size == second.size > 0
    assert (second.attempt, failed.request) == (2, first)
    assert (failed.code, failed.details) == (grpc.StatusCode.UNAVAILABLE, "busy")
    assert answered.code is grpc.StatusCode.OK
    assert 0 < answered.seconds < 10


def test_metadata_is_the_clients_and_the_calls(connect, server):
    client = connect(server.address, metadata=[("team", "a")])
    client.status(metadata=[("trace", "t"), ("blob-bin", b"\x00\xff")])
    (request,) = server.requests
    assert request.metadata["team"] == "a"
    assert request.metadata["trace"] == "t"
    assert request.metadata["blob-bin"] == b"\x00\xff"


def test_every_call_has_a_deadline(connect, server):
    client = connect(server.address)
    client.status()
    client.status(timeout=Timeout(request=5, total=50))
    client.status(timeout=7)
    left = [request.seconds_left for request in server.requests]
    assert all(abs(limit - x) < 1 for x, limit in zip(left, (30, 5, 7), strict=True))


def test_paths_of_files_are_what_errors_name(connect, server, tmp_path):
    path = tmp_path / "junk.png"
    path.write_bytes(b"junk")
    with pytest.raises(InvalidImageError) as caught:
        connect(server.address).classify(Path(path))
    assert caught.value.image == str(path)
