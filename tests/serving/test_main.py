"""The server as a process: flags, mistakes, signals."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
from tfs_client import Client

from pipeline import local_server, publish
from pipeline.local_server import free_port
from tests.conftest import ROOT
from tests.serving.conformance.servers import listening
from tests.serving.processes import serving

RECORDED = Path(__file__).parent / "conformance" / "models"
TIMEOUT = 30
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]  # not that of another channel


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "give either --model_base_path or --model_config_file"),
        (["--model_base_path=/m", "--model_config_file=/c"], "/c: "),  # the path is ignored
        (["--model_config_file=/no/models.config"], "/no/models.config"),
        (["--model_base_path=/m", "--batching_parameters_file=/b"], "needs --enable_batching"),
        (
            ["--model_base_path=/m", "--enable_batching", "--batching_parameters_file=/no/b"],
            "/no/b: ",
        ),
        (
            ["--model_base_path=/m", "--port=many"],
            "--port: 'many' is not a whole number from 1 to 65535",
        ),
        (["--model_base_path=/m", "--port=70000"], "'70000' is not a whole number"),
        (["--model_base_path=/m", "--grpc_max_threads=0"], "'0' is not a whole number from 1"),
        (["--model_base_path=/m", "--enable_batching=perhaps"], "'perhaps' is not true or false"),
        (["--model_base_path=/m", "--no_such_flag=1"], "--no_such_flag"),
        (["--model_base_path=m"], "--model_base_path: Expected model default to have an absolute"),
        (["--model_base_path=/m", "--ssl_config_file=/no/ssl"], "/no/ssl: "),
        (["--model_base_path=/m", "--monitoring_config_file=/no/mon"], "/no/mon: "),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(command, flags, words):
    done = command("serving", *flags)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_address_in_use_is_said_before_models_are_loaded(command, models):
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        done = command("serving", f"--port={port}", f"--model_base_path={models / 'googlenet'}")
    assert done.returncode == 2
    assert f"port {port} is in use: choose another with --port" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@contextlib.contextmanager
def start(*flags: object) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "serving", *map(str, flags)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        try:
            yield server
        finally:
            server.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_code_0(models, number, tmp_path):
    port = free_port()
    config = tmp_path / "models.config"
    config.write_text(
        f'model_config_list {{ config {{ name: "googlenet" base_path: "{models}/googlenet" '
        'model_platform: "tensorflow" } }'
    )
    with start(f"--port={port}", f"--model_config_file={config}", "--enable_batching") as server:
        with Client(f"localhost:{port}") as client:
            assert client.wait_until_ready(60) == 1
        server.send_signal(number)
        _, log = server.communicate(timeout=60)
    assert server.returncode == 0
    assert f"Running gRPC ModelServer at 0.0.0.0:{port} ..." in log


def test_a_signal_may_come_as_the_server_begins_to_wait():
    code = """
import os, signal
from serving.__main__ import told_to_stop
stop = told_to_stop()
with stop._cond:  # which wait() holds for some microseconds
    os.kill(os.getpid(), signal.SIGTERM)
print(stop.wait(20))
"""
    command = [sys.executable, "-c", code]
    said = subprocess.check_output(command, cwd=ROOT, text=True, timeout=TIMEOUT)
    assert said == "True\n"


def predict(channel: grpc.Channel, model: str, *values: float) -> grpc.Future:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array(values, np.float32)))
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    return stub.Predict.future(request, timeout=TIMEOUT)


def test_sigterm_finishes_what_runs_and_refuses_what_is_new():
    flags = "--model_name=slow", f"--model_base_path={RECORDED / 'slow'}"
    with (
        serving(*flags) as server,
        grpc.insecure_channel(f"localhost:{server.port}", OWN_CONNECTION) as channel,
        grpc.insecure_channel(f"localhost:{server.port}", OWN_CONNECTION) as newcomer,
    ):
        predict(channel, "slow", 1).result()  # it is compiled now
        running = [predict(channel, "slow", 1) for _ in range(12)]  # each 0.2 s of a core and more
        time.sleep(0.2)
        server.process.terminate()
        while listening(server.port):
            assert not all(call.done() for call in running)
            time.sleep(0.01)
        refusal = predict(newcomer, "slow", 1).exception()
        assert not all(call.done() for call in running)
        assert [call.result().outputs["y"].float_val for call in running] == [[2]] * 12
        assert server.process.wait(TIMEOUT) == 0
    assert isinstance(refusal, grpc.RpcError)
    assert refusal.code() is grpc.StatusCode.UNAVAILABLE


def test_a_grace_that_is_over_ends_what_still_runs():
    flags = "--model_name=slow", f"--model_base_path={RECORDED / 'slow'}"
    with (
        serving(*flags, "--grace_period_seconds=0") as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        running = [predict(channel, "slow", 1) for _ in range(16)]
        time.sleep(0.3)
        server.process.terminate()
        assert all(call.exception() for call in running)
        assert server.process.wait(TIMEOUT) == 0


def test_flags_of_grpc_reach_it_and_every_request_is_logged(tmp_path):
    """A UNIX socket, a limit of gRPC's own, and a line of JSON for each request, REST or gRPC."""
    port, rest_port, socket_path = free_port(), free_port(), tmp_path / "socket"
    with start(
        f"--port={port}", f"--rest_api_port={rest_port}", f"--grpc_socket_path={socket_path}",
        "--grpc_channel_arguments=grpc.max_receive_message_length=1000", "--access_log",
        "--model_name=affine", f"--model_base_path={RECORDED / 'affine'}",
    ) as server:  # fmt: skip
        while "Exporting HTTP/REST API" not in server.stderr.readline():
            assert server.poll() is None
        with grpc.insecure_channel(f"unix:{socket_path}") as channel:
            assert predict(channel, "affine", 1).result().outputs["y"].float_val == [3.5]
            too_large = predict(channel, "affine", *[1.0] * 1000).exception()
            unknown = predict(channel, "nope", 1).exception()
        urllib.request.urlopen(f"http://localhost:{rest_port}/v1/models/affine", timeout=TIMEOUT)
        server.terminate()
        _, log = server.communicate(timeout=60)
    assert too_large.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert unknown.code() is grpc.StatusCode.NOT_FOUND
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [(line["entrypoint"], line["status"]) for line in lines] == [
        ("GRPC", "OK"), ("GRPC", "NOT_FOUND"), ("REST", 200),
    ]  # fmt: skip
    for line in lines:
        assert line["time"] == pytest.approx(time.time(), abs=120)
        assert 0 <= line["seconds"] < TIMEOUT


def test_a_versions_own_parameters_batch_it(tmp_path):
    """One model of two has a batching_params.pbtxt, and is batched by it."""
    for model in ("own", "none"):
        shutil.copytree(RECORDED / "affine" / "2", tmp_path / model / "1")
    (tmp_path / "own" / "1" / "batching_params.pbtxt").write_text("max_batch_size { value: 3 }")
    entries = "".join(
        f'config {{ name: "{model}" base_path: "{tmp_path}/{model}" model_platform: "tensorflow" }}'
        for model in ("own", "none")
    )
    (tmp_path / "models.config").write_text(f"model_config_list {{ {entries} }}")
    flags = "--enable_batching", "--enable_per_model_batching_parameters"
    with (
        serving(f"--model_config_file={tmp_path}/models.config", *flags) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        assert predict(channel, "own", 1, 1, 1).result().outputs["y"].float_val == [3.5] * 3
        assert "larger than maximum" in predict(channel, "own", 1, 1, 1, 1).exception().details()
        assert predict(channel, "none", *[1.0] * 2000).result().outputs["y"].float_val[-1] == 3.5


def test_the_version_is_said_without_a_model(command):
    done = command("serving", "--version")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"embedded server: {metadata.version('googlenet-serving')}",
        f"TensorFlow Library: {tf.__version__}",
    ]
    assert not done.stderr


def test_a_flag_that_means_nothing_is_warned_of(command):
    done = command("serving", "--version", "--num_load_threads=4")
    assert done.returncode == 0
    assert "warning: --num_load_threads has no effect" in done.stderr


def test_waiting_for_a_first_version_ends_with_a_signal_too(tmp_path):
    with start(f"--port={free_port()}", f"--model_base_path={tmp_path / 'none'}") as server:
        while "cannot read the base path" not in server.stderr.readline():
            assert server.poll() is None
        server.terminate()
        server.communicate(timeout=60)
    assert server.returncode == 0


def test_a_new_version_is_served_without_a_restart(run, exported, tmp_path):
    publish.publish(run, tmp_path, force=True)
    with local_server.serving(tmp_path) as client:
        assert client.wait_until_ready() == 1
        publish.publish(run, tmp_path, force=True)
        for _ in range(300):
            if {s.version: s.state for s in client.status()} == {1: "END", 2: "AVAILABLE"}:
                break
            time.sleep(0.1)
        assert client.classify(np.zeros((28, 28, 3), np.uint8)).version == 2
