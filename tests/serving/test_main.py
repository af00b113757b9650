"""The server as a process: flags, mistakes, signals."""

import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from tfs_client import Client

from pipeline import local_server, publish
from pipeline.local_server import free_port
from tests.conftest import ROOT

BATCHING = ROOT / "serving" / "config" / "batching.config"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "give either --model_base_path or --model_config_file"),
        (["--model_base_path=/m", "--model_config_file=/c"], "give either"),
        (["--model_config_file=/no/models.config"], "/no/models.config"),
        (["--model_base_path=/m", "--batching_parameters_file=/b"], "needs --enable_batching"),
        (
            ["--model_base_path=/m", "--enable_batching", "--batching_parameters_file=/no/b"],
            "batching parameters file /no/b",
        ),
        (
            ["--model_base_path=/m", "--port=many"],
            "--port: 'many' is not a whole number from 1 to 65535",
        ),
        (["--model_base_path=/m", "--port=70000"], "'70000' is not a whole number"),
        (["--model_base_path=/m", "--grpc_max_threads=0"], "'0' is not a whole number from 1"),
        (["--model_base_path=/m", "--enable_batching=perhaps"], "'perhaps' is not true or false"),
        (["--model_base_path=/m", "--no_such_flag=1"], "--no_such_flag"),
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


def start(*flags: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "serving", *map(str, flags)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


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


def test_waiting_for_a_first_version_ends_with_a_signal_too(tmp_path):
    with start(f"--port={free_port()}", f"--model_base_path={tmp_path / 'none'}") as server:
        while "cannot read the base path" not in server.stderr.readline():
            pass
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
