"""A model server as a process of its own, for as long as something here needs it."""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
from tfs_client import Client, TFSError

from pipeline.config import MODEL_NAME
from pipeline.errors import PipelineError

BATCHING_CONFIG = Path(__file__).parents[1] / "serving/config/batching.config"
START_SECONDS = 120.0
STOP_SECONDS = 40.0


class StartError(PipelineError):
    """The server ran, and the model did not become available."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        client: of its model.
        process: what was started, which need not be the process that answers.
        port: TCP port of its gRPC API.
    """

    client: Client
    process: subprocess.Popen
    port: int

    def peak_memory(self) -> int | None:
        """Largest resident set so far, in bytes, with all child processes.

        None where it cannot be measured: the process that answers is none of ours, as in a
        container, or this is not Linux.
        """
        try:
            ours = psutil.Process(self.process.pid)
            family = [ours, *ours.children(recursive=True)]
            if not any(_listens(process, self.port) for process in family):
                return None
            return sum(_peak(process.pid) for process in family)
        except (psutil.Error, OSError):
            return None


@contextlib.contextmanager
def serving(repository: Path, *flags: str) -> Iterator[Client]:
    """Serve a model repository on a free port, as `make serve` does on port 8500.

    Yields a client once the model is available. Further flags are the server's own.

    Raises:
        PipelineError: nothing is published there, or the server does not start.
    """
    with server(repository, *flags) as started:
        yield started.client


@contextlib.contextmanager
def server(repository: Path, *flags: str, command: str | None = None) -> Iterator[Server]:
    """The same, yielding the server.

    Args:
        repository: holds `googlenet/<version>/`.
        flags: further ones of tensorflow_model_server's.
        command: the server to start in place of the embedded one, see `command_line`.

    Raises:
        StartError: the server ends, or the model is not available in time; with its last line.
        PipelineError: nothing is published there, or there is no such command.
    """
    if not (repository / MODEL_NAME).is_dir():
        raise PipelineError(f"no model is published in {repository}/: run `make train export`")
    port = free_port()
    arguments = command_line(command, port, repository, *flags)
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(
            arguments, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            start_new_session=True,
        ) as process,
        _stopping(process),
        Client(f"localhost:{port}", MODEL_NAME) as client,
    ):  # fmt: skip
        _wait(process, client, output)
        yield Server(client, process, port)


def command_line(command: str | None, port: int, repository: Path, *flags: str) -> list[str]:
    """The arguments that start a server.

    Args:
        command: None for the embedded server. Words as in a shell; tensorflow_model_server's flags
            are appended, unless the command holds {port} or {repository}: then these are filled
            in, and nothing is appended, since a container has paths and ports of its own.
        port: to answer on.
        repository: holds `googlenet/<version>/`.
        flags: further ones of tensorflow_model_server's.

    Raises:
        PipelineError: there is no such program.
    """
    words = _words(command) if command else [sys.executable, "-m", "serving"]
    if any("{port}" in word or "{repository}" in word for word in words):
        path = str(repository.absolute())
        return [word.replace("{port}", str(port)).replace("{repository}", path) for word in words]
    return [
        *words, f"--port={port}", f"--model_name={MODEL_NAME}",
        f"--model_base_path={(repository / MODEL_NAME).absolute()}",
        "--enable_batching", f"--batching_parameters_file={BATCHING_CONFIG}", *flags,
    ]  # fmt: skip


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise PipelineError(f"server command {command!r}: {error}: mend its quotes") from error
    if not words or not shutil.which(words[0]):
        raise PipelineError(f"server command {command!r}: no such program: install or correct it")
    return words


def free_port() -> int:
    """A TCP port that nothing uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _stopping(process: subprocess.Popen) -> Iterator[None]:
    """End the process, and what it started, however the block is left."""
    try:
        yield
    finally:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        _signal(process, signal.SIGKILL)  # a shell ends before the server that it started


def _signal(process: subprocess.Popen, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)  # it leads a session, hence a group, of its own


def _wait(process: subprocess.Popen, client: Client, output: IO[str]) -> None:
    """Wait until the model is available, and no longer than the process lives."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            client.wait_until_ready(timeout=1.0)
            return
        except TFSError as error:
            ended = process.poll() is not None
            if not ended and time.monotonic() < deadline:
                continue
            output.seek(0)
            lines = output.read().strip().splitlines() or ["it printed nothing"]
            late = "" if ended else f" in {START_SECONDS:g} s"
            raise StartError(f"the server did not start{late}: {lines[-1]}") from error


def _listens(process: psutil.Process, port: int) -> bool:
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for connection in process.net_connections("tcp")
    )


def _peak(pid: int) -> int:
    """VmHWM, in bytes; psutil has the present size only."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0  # a zombie has no memory
