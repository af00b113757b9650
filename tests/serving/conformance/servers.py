"""Servers as a case describes them, on a private copy of the models."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from pipeline.local_server import free_port
from tests.conftest import ROOT

HERE = Path(__file__).parent
START_SECONDS, STOP_SECONDS = 90.0, 10.0
AVAILABLE = get_model_status_pb2.ModelVersionStatus.State.AVAILABLE


def load() -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Sets of flags by name, and the cases that count."""
    lines = [json.loads(line) for line in (HERE / "cases.jsonl").read_text().splitlines()]
    flags = {line["name"]: line for line in lines if line.get("kind") == "server"}
    cases = [line for line in lines if "id" in line and not line.get("uncertain")]
    return flags, cases


def of_its_own(case: dict[str, Any]) -> bool:
    """Whether a case changes its server, or is about its start."""
    return bool(case.get("fresh")) or case["transport"] == "startup"


@dataclass(frozen=True)
class Server:
    """A server that was started, which need not answer yet.

    Attributes:
        folder: its own; `models` is in it, and its configuration files.
        port, rest_port: of its APIs.
        process: it.
        channel: to its gRPC API.
    """

    folder: Path
    port: int
    rest_port: int
    process: subprocess.Popen
    channel: grpc.Channel

    @property
    def models(self) -> Path:
        return self.folder / "models"

    def fill(self, text: str) -> str:
        """A text of a case, with the paths in it."""
        return _fill(text, self.folder)

    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def write(self, name: str, text: str) -> None:
        """Replace a configuration file in one step, as a writer of such should."""
        partial = self.folder / f"{name}.new"
        partial.write_text(self.fill(text))
        os.replace(partial, self.folder / name)


def _fill(text: str, folder: Path) -> str:
    return text.replace("{models}", str(folder / "models")).replace("{dir}", str(folder))


@contextlib.contextmanager
def launched(spec: dict[str, Any]) -> Iterator[Server]:
    """A server process, from its start."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        _prepare(folder, spec)
        port, rest_port = free_port(), free_port()
        flags = [f"--port={port}", f"--rest_api_port={rest_port}"]
        flags += [_fill(flag, folder) for flag in spec["flags"]]
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_reconnect_backoff_ms", 500),
        ]
        with (
            (folder / "server.log").open("w") as log,
            subprocess.Popen(
                [sys.executable, "-m", "serving", *flags], cwd=ROOT, stdout=log, stderr=log
            ) as process,
            grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel,
        ):
            try:
                yield Server(folder, port, rest_port, process, channel)
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_SECONDS)
                process.kill()


def _prepare(folder: Path, spec: dict[str, Any]) -> None:
    models = folder / "models"
    shutil.copytree(HERE / "models", models)
    for to, source in spec.get("links", {}).items():
        if source:
            shutil.copytree(models / source, models / to)
        else:
            (models / to).mkdir(parents=True)
    for name, text in spec.get("files", {}).items():
        (folder / name).write_text(_fill(text, folder))


def wait_until_ready(server: Server, spec: dict[str, Any]) -> None:
    """Until the models that the flags name are available, and REST, which opens last, is open."""
    deadline = time.monotonic() + START_SECONDS
    if not spec.get("wait", True):
        return
    stub = model_service_pb2_grpc.ModelServiceStub(server.channel)
    for name in spec.get("ready", []):
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = name
        while not _available(stub, request):
            assert server.process.poll() is None, server.log()[-2000:]
            assert time.monotonic() < deadline, server.log()[-2000:]
            time.sleep(0.05)
    while not listening(server.rest_port):
        assert time.monotonic() < deadline, server.log()[-2000:]
        time.sleep(0.05)


def _available(stub: model_service_pb2_grpc.ModelServiceStub, request) -> bool:
    try:
        states = stub.GetModelStatus(request, timeout=5).model_version_status
    except grpc.RpcError:
        return False
    return bool(states) and all(version.state == AVAILABLE for version in states)


def listening(port: int) -> bool:
    """Whether something answers there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
