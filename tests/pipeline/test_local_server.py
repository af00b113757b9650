import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import psutil
import pytest

from pipeline import local_server, samples
from pipeline.errors import PipelineError
from tests.conftest import ROOT


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_nothing_published_is_said(tmp_path):
    with pytest.raises(PipelineError, match=f"no model is published in {tmp_path}/"):
        local_server.serving(tmp_path).__enter__()


def test_a_server_that_ends_at_once_is_not_waited_for(tmp_path):
    (tmp_path / "googlenet" / "1").mkdir(parents=True)
    (tmp_path / "googlenet" / "1" / "saved_model.pb").write_bytes(b"broken")
    started = time.monotonic()
    with pytest.raises(PipelineError, match=r"did not start: .*saved_model\.pb"):
        local_server.serving(tmp_path, "--max_num_load_retries=0").__enter__()
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_the_server_ends_with_whoever_started_it(models, data, tmp_path, number):
    samples.write(data, tmp_path)
    command = ["benchmark", "--dataset", data.name, "--data-dir", tmp_path, "--repository", models]
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline", *map(str, command)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        title = process.stdout.readline()
        address = re.search(r"localhost:\d+", title).group()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 128 + number)
    assert "Traceback" not in errors
    assert not any(alive(int(child)) for child in children)
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(channel).result(timeout=1)


def test_a_command_with_places_is_taken_as_it_is_and_ends_with_its_children(models):
    words = f"{sys.executable} -m serving --port={{port}} --model_name=googlenet"
    command = f"sh -c '{words} --model_base_path={{repository}}/googlenet; true'"
    with local_server.server(models, command=command) as server:
        (child,) = psutil.Process(server.process.pid).children()
        assert server.client.wait_until_ready() == 1
        assert server.peak_memory() >= child.memory_info().rss
    _, alive = psutil.wait_procs([child], timeout=10)  # it is nobody's child now
    assert not alive


def test_memory_of_a_server_that_is_no_process_of_ours_is_not_measured(client):
    port = int(client.address.rpartition(":")[2])
    with subprocess.Popen(["sleep", "100"]) as process:
        assert local_server.Server(client, process, port).peak_memory() is None
        process.kill()
