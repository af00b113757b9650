"""`tfs canary` between two real servers, and the statistics it rests on."""

import http.server
import itertools
import json
import math
import re
import subprocess
import sys
import threading
from collections import Counter
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import tensorflow as tf
from tfs_client import Client, TFSError
from tfs_client.__main__ import _parser, main
from tfs_client.bench import canary, intervals, payloads, servers, traffic
from tfs_client.bench.canary import HOLD, PROMOTE, ROLL_BACK
from tfs_client.bench.server_side import PATH
from tfs_client.testing import FakeServer

from tests.conftest import ROOT

CLASSES = ("blue", "green", "red")
IMAGE = 16  # pixels
SECONDS = 3
LIMITS = [10 * 1.8**power for power in range(33)]  # of TensorFlow Serving's buckets


class Colours(tf.Module):
    """An image's mean colour, as a model of the usual signature; or one that goes wrong.

    `other` names other colours, `failing` fails with one image in five, `slow` takes long.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weights = tf.Variable(np.eye(3, dtype=np.float32)[:, ::-1] / 8)
        self.noise = tf.Variable(tf.random.normal([256, 256], seed=1) / 256)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def serve(self, image_bytes):
        means = tf.map_fn(self.mean, image_bytes, fn_output_signature=tf.float32)
        probabilities = tf.nn.softmax(means @ self.weights)
        if self.kind == "other":
            probabilities = tf.roll(probabilities, 1, axis=1)
        if self.kind == "failing":
            buckets = tf.strings.to_hash_bucket_fast(image_bytes, 5)
            with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(buckets > 0), ["no"])]):
                probabilities = tf.identity(probabilities)
        if self.kind == "slow":
            _, noise = tf.while_loop(
                lambda turn, _: turn < 20,
                lambda turn, noise: (turn + 1, noise @ self.noise),
                [0, self.noise],
            )
            probabilities += 0 * tf.reduce_sum(noise)
        scores, best = tf.math.top_k(probabilities, 3)
        return {
            "classes": tf.gather(tf.constant(CLASSES), best),
            "scores": scores,
            "probabilities": probabilities,
            "valid": tf.ones_like(image_bytes, tf.bool),
        }

    @staticmethod
    def mean(content):
        pixels = tf.io.decode_image(content, 3, expand_animations=False)
        return tf.reduce_mean(tf.cast(pixels, tf.float32), [0, 1])


DOCUMENT = (ROOT / "docs" / "canary.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.S)
KINDS = ("same", "other", "failing", "slow")


def config(folder, paths):
    """A models.config: names -> folders."""
    models = (
        f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" }}'
        for name, path in paths.items()
    )
    file = folder / f"{len(set(paths.values()))}.config"
    file.write_text(f"model_config_list {{ {' '.join(models)} }}")
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Has a folder of each of KINDS, with version 1."""
    folder = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        model = Colours(kind)
        tf.saved_model.save(model, str(folder / kind / "1"), {"serving_default": model.serve})
    return folder


@pytest.fixture(scope="module")
def tracks(folder):
    """Addresses of stable and the canary: four models each, the same ones and those of KINDS."""
    with ExitStack() as stack:
        addresses = []
        for paths in (dict.fromkeys(KINDS, folder / "same"), {k: folder / k for k in KINDS}):
            port = servers.free_port()
            words = [
                sys.executable, "-m", "serving", f"--port={port}", f"--rest_api_port={port + 1}",
                f"--model_config_file={config(folder, paths)}",
                f"--monitoring_config_file={ROOT / 'serving/config/monitoring.config'}",
            ]  # fmt: skip
            client = stack.enter_context(Client(f"localhost:{port}", "slow"))
            stack.enter_context(servers.running(words, client))
            addresses.append(client.address)
        yield addresses


@contextmanager
def callers(addresses, model):
    """Two callers of each server, whatever becomes of their calls."""
    stop = threading.Event()
    pictures = list(map(payloads._encode, payloads._pictures(50, IMAGE, seed=7)))

    def call(address, first):
        with Client(address, model) as client:
            for image in itertools.islice(itertools.cycle(pictures), first, None):
                client.classify([image], errors="return")
                if stop.is_set():
                    return

    threads = [
        threading.Thread(target=call, args=pair) for pair in itertools.product(addresses, (0, 25))
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)


def judge(tracks, model, *options):
    always = ["--model", model, "--size", IMAGE, "--seconds", SECONDS]
    return main(["canary", *tracks, *map(str, (*always, *options))])


def rows(text):
    """Check -> the row's cells."""
    return {row.split()[0]: re.split(r"\s{2,}", row) for row in text.splitlines() if "≤" in row}


# --- two servers ---


def test_the_same_model_is_promoted(tracks, tmp_path, capsys):
    output = tmp_path / "verdicts" / "canary.json"
    with callers(tracks, "same"):
        for longer in (1, 3, 9):  # a busy machine gets fewer calls done, and may disturb one track
            seconds = ("--seconds", longer * SECONDS)
            code = judge(tracks, "same", "--latency-ratio", 3, "--output", output, *seconds)
            assert code in (0, 4)
            if code == 0:
                break
    shown = capsys.readouterr().out
    assert code == 0, shown
    assert shown.startswith(f"stable: same version 1 at {tracks[0]}\ncanary: same version 1 at ")
    assert shown.endswith("\nPROMOTE\n")
    written = json.loads(output.read_text())
    assert (written["verdict"], written["canary"]["address"]) == ("promote", tracks[1])
    assert [check["verdict"] for check in written["checks"]] == ["promote"] * 4
    assert written["checks"][-1]["canary"] == 0


@pytest.mark.parametrize(
    ("model", "check", "detail"),
    [
        ("other", "disagreement", "64 of 64 images; probabilities differ by up to"),
        ("failing", "errors", "canary's: INVALID_ARGUMENT"),
        ("slow", "p50 ms", "× stable"),
    ],
)
def test_a_worse_canary_is_rolled_back_and_the_table_says_why(tracks, model, check, detail, capsys):
    with callers(tracks, model):
        assert judge(tracks, model, "--latency-ratio", 2) == 1
    shown = capsys.readouterr().out
    found = {row[0]: row for row in rows(shown).values()} | {"p50 ms": rows(shown)["p50"]}
    assert found[check][-2] == ROLL_BACK, shown
    assert detail in found[check][-1]
    assert shown.endswith("\nROLL BACK\n")
    assert (found["errors"][-2] == ROLL_BACK) == (model == "failing"), shown


def test_without_calls_it_holds_and_says_how_many_it_takes(tracks, capsys):
    assert judge(tracks, "same", "--seconds", 0.5) == 4
    shown = capsys.readouterr().out
    found = rows(shown)
    missing = r"0 of 0; stable 0 of 0; about 38\d more calls to the canary would tell"
    assert re.fullmatch(missing, found["errors"][-1])
    assert found["p99"][-1] == "about 500 more calls to the canary would tell"
    assert found["disagreement"][-2] == PROMOTE
    assert shown.endswith("\nHOLD\n")


def test_mistakes_are_one_line(tracks, capsys):
    stable, other = tracks
    with FakeServer() as server:
        for arguments, code, words in (
            ([stable, stable], 2, "is stable's too: the canary needs a server of its own"),
            ([stable, f"localhost:{servers.free_port()}"], 3, "UNAVAILABLE|refused|connect"),
            ([stable, server.address], 3, "localhost:.*, model same"),
            (
                [stable, other, "--canary-metrics", "localhost"],
                2,
                "localhost: is no URL of metrics",
            ),
            (
                [stable, other, "--canary-metrics", metrics(other) + "x"],
                2,
                "no metrics can be read",
            ),
            ([stable, other, "--images", "/nowhere/a.png"], 2, "/nowhere/a.png: cannot be read"),
            ([stable, other, "--payload", "float32"], 2, "no signature that takes one float32"),
            ([stable, other, "--output", "/dev/null/x"], 2, "cannot be written to"),
        ):
            options = ["--model", "same", "--timeout", "2", "--seconds", "0.1"]
            assert main(["canary", *arguments, *options]) == code, arguments
            error = capsys.readouterr().err
            assert error.startswith("tfs: error: ")
            assert re.search(words, error), error
            assert len(error.splitlines()) == 1
    with pytest.raises(SystemExit):
        main(["canary", stable, other, "--errors", "1.5"])
    assert "'1.5' is not a number between 0 and 1" in capsys.readouterr().err


def metrics(address):
    """The URL of a server's metrics."""
    (url,) = traffic.beside(address)()
    return url


# --- the document ---


def test_what_the_document_shows_works(folder, tmp_path):
    check, links, *commands = BLOCKS
    for name in ("Makefile", "serving"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "models/googlenet").mkdir(parents=True)
    for version in ("1", "2"):
        (tmp_path / "models/googlenet" / version).symlink_to(folder / "same/1")
    subprocess.run(["bash", "-ec", links], cwd=tmp_path, check=True, timeout=20)
    with ExitStack() as stack:
        for command, port in zip(commands, ("8500", "8600"), strict=True):
            free = servers.free_port()
            assert f"localhost:{port}" in check
            assert f"--port={port} --rest_api_port={int(port) + 1}" in command
            check = check.replace(port, str(free))
            serve = command.replace(port, str(free)).replace(str(int(port) + 1), str(free + 1))
            client = stack.enter_context(Client(f"localhost:{free}"))
            words = ["bash", "-c", f"cd {tmp_path} && exec {serve}"]
            stack.enter_context(servers.running(words, client))
        check = check.replace("make ", "make --silent --old-file=.venv/.ready ").strip()
        done = subprocess.run(
            ["bash", "-c", f'{check} FLAGS="--seconds 0.2 --size {IMAGE}"'],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 2, done.stderr  # make's
    assert "canary: googlenet version 2 at localhost:" in done.stdout
    assert done.stdout.endswith("\nHOLD\n")
    (header,) = (line for line in done.stdout.splitlines() if line.startswith("check "))
    assert header.split() == re.search(r"^check .*$", DOCUMENT, re.M)[0].split()


def test_what_the_document_says_is_so():
    (row,) = (c for c in canary.latencies([(Counter(), Counter())], 1.5, 60) if c.check == "p99 ms")
    assert row.detail.startswith("about 500 more calls")
    assert [intervals.wilson((0, n))[1] <= 0.1 for n in (34, 35)] == [False, True]
    least = [intervals.newcombe((0, 10**6), (0, n))[1] <= 0.01 for n in (380, 381)]
    assert least == [False, True]
    assert "that takes 381 calls to the canary, with p99 500, and for the answers 35 images" in (
        DOCUMENT.replace("\n", " ")
    )
    options = _parser().parse_args(["canary", "a:1", "b:1"])
    for name, default in re.findall(r"`--([a-z-]+) ([\d.]+)`", DOCUMENT):
        assert getattr(options, name.replace("-", "_")) == float(default)


# --- what callers got ---

# As TensorFlow Serving prints it, with its own HELP and six digits.
PAGE = """# TYPE request_count counter
request_count{model_name="m",status="OK"} 900
request_count{model_name="m",status="NOT_FOUND"} 30
request_count{model_name="m",status="INTERNAL"} FAILED
request_count{model_name="other",status="INTERNAL"} 99
# TYPE request_latency histogram
request_latency_bucket{model_name="m",API="",entrypoint="REST",le="+Inf"} 700
request_latency_bucket{model_name="m",API="Predict",entrypoint="GRPC",le="10"} 0
request_latency_bucket{model_name="m",API="Predict",entrypoint="GRPC",le="18"} OK
request_latency_bucket{model_name="m",API="Predict",entrypoint="GRPC",le="+Inf"} OK
"""


def page(failed, ok):
    text = PAGE.replace("request_", ":tensorflow:serving:request_")
    return text.replace("FAILED", str(failed)).replace("} OK", f"}} {ok}")


@pytest.fixture
def pages():
    """Pages of metrics by path, which a test may change; and the URL of the server."""
    found = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = found.get(self.path)
            self.send_response(200 if content else 404)
            self.end_headers()
            self.wfile.write((content or "").encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


def test_calls_are_those_of_callers_and_of_the_time(pages):
    found, url = pages
    found["/a"] = page(5, 100)
    meter = traffic.Meter(lambda: [f"{url}/a"], "m")
    found["/a"] = page(7, 150)
    new = meter.read()
    assert new == {
        ("INTERNAL",): 2, ("Predict", "GRPC", "10"): 0, ("Predict", "GRPC", "18"): 50,
        ("Predict", "GRPC", "inf"): 50,
    }  # fmt: skip
    (failed, count), (none, nothing) = traffic.failures([(new, Counter())])
    assert (failed, count, none, nothing) == ({"INTERNAL": 2}, 52, {}, 0)


def test_servers_come_go_and_start_again(pages):
    found, url = pages
    there = ["/a", "/b"]
    found |= {"/a": page(0, 100), "/b": page(0, 1000)}
    meter = traffic.Meter(lambda: [url + path for path in there], "m")
    answered = lambda: meter.read()["Predict", "GRPC", "inf"]  # noqa: E731
    found["/a"] = page(0, 30)  # it was started again
    del found["/b"]  # it does not answer now
    assert answered() == 30
    found |= {"/b": page(0, 1001), "/c": page(0, 5)}
    there.append("/c")
    assert answered() == 1 + 5
    found.clear()
    with pytest.raises(TFSError, match=r"404.*: start the server with --monitoring_config_file"):
        meter.read()


def test_metrics_are_on_the_port_after_grpcs():
    assert metrics("localhost:8500") == f"http://127.0.0.1:8501{PATH}"
    assert metrics("[::1]:8500") == f"http://[::1]:8501{PATH}"
    assert len(traffic.beside("localhost:8500,dns:///localhost:8600")()) == 2
    assert traffic.beside("unix:///socket", "http://x")() == ["http://x"]
    with pytest.raises(TFSError, match="name their URL"):
        traffic.beside("unix:///socket")
    with pytest.raises(TFSError, match=r"no-such-host\.invalid: has no address"):
        traffic.beside("no-such-host.invalid:8500")()


def test_latency_is_compared_where_both_were_called():
    rest = {("predict", "REST", "10"): 0, ("predict", "REST", "inf"): 900}
    grpc = {("Predict", "GRPC", "10"): 2, ("Predict", "GRPC", "inf"): 9}
    limits, (stable, other) = traffic.histograms([(Counter(rest | grpc), Counter(grpc))] * 2)
    assert (limits.tolist(), stable.tolist()) == ([10, math.inf], [[2, 9], [2, 9]])
    assert other.tolist() == stable.tolist()


# --- statistics ---


def test_intervals_are_those_of_the_literature():
    """Newcombe (1998), tables of both of his articles."""
    assert intervals.wilson((81, 263)) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert intervals.wilson((0, 20)) == pytest.approx((0, 0.1611), abs=1e-4)
    assert intervals.newcombe((48, 80), (56, 70)) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert intervals.newcombe((0, 20), (0, 10)) == pytest.approx((-0.1611, 0.2775), abs=1e-4)


def test_a_quantile_does_not_depend_on_where_the_buckets_are():
    chance = np.random.default_rng(1)
    for shape, scale in itertools.product((0.3, 0.7), np.geomspace(3e3, 9e3, 7)):
        below, values = histogram(scale * np.exp(chance.normal(0, shape, 20_000)))
        for q in (50, 99):
            found = traffic.quantile(np.array([*LIMITS, math.inf]), below, q)
            assert found == pytest.approx([np.percentile(values, q)], rel=0.05)
    nothing = traffic.quantile(np.array([*LIMITS, math.inf]), np.zeros((1, 34)), 50)
    assert np.isnan(nothing).all()


def histogram(micros):
    """One row, cumulated, and the values."""
    return np.array([[*((micros <= limit).sum() for limit in LIMITS), len(micros)]], float), micros


def calls(chance, count, scale, failing=0.0):
    """What a server counted of so many calls."""
    failed = int(chance.binomial(count, failing))
    (below,), _ = histogram(chance.gamma(4, 1000 * scale, count - failed))
    keys = (("Predict", "GRPC", f"{limit:.6g}") for limit in (*LIMITS, math.inf))
    return Counter(dict(zip(keys, map(int, below), strict=True)) | {("INTERNAL",): failed})


@pytest.mark.parametrize(
    ("scale", "failing", "count", "expected"),
    [
        (1.0, 0.0, 40, {PROMOTE}),
        (1.0, 0.0, 2, {HOLD}),
        (1.35, 0.005, 40, {PROMOTE, HOLD}),  # nearly as bad as the limits
        (2.0, 0.0, 40, {ROLL_BACK}),
        (1.0, 0.05, 40, {ROLL_BACK}),
    ],
)
def test_verdicts_are_right_but_for_one_in_twenty(scale, failing, count, expected):
    chance = np.random.default_rng(3)
    wrong = 0
    for repeat in range(40):
        parts = [(calls(chance, 200, 1.0), calls(chance, count, scale, failing)) for _ in range(20)]
        checks = [canary.errors(parts, 0.01, 60), *canary.latencies(parts, 1.5, 60, repeat)]
        wrong += canary.verdict(checks) not in expected
    assert wrong <= 2


def test_one_burst_of_calls_says_nothing_of_latency():
    chance = np.random.default_rng(1)
    parts = [(calls(chance, 800, 1.0), calls(chance, 800, 2.0))] + [(Counter(), Counter())] * 19
    p50, p99 = canary.latencies(parts, 1.5, 60)
    assert (p50.verdict, p99.verdict) == (HOLD, HOLD)
    assert p50.detail.endswith("; both were called in 1 of 20 parts of the window only")
