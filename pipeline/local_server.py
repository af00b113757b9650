"""A model server as a process of its own, for as long as something here needs it."""

import contextlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from tfs_client import Client
from tfs_client.bench import servers
from tfs_client.bench.servers import free_port

from pipeline.config import MODEL_NAME
from pipeline.errors import PipelineError

CONFIG = Path(__file__).parents[1] / "serving/config"
BATCHING_CONFIG = CONFIG / "batching.config"


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
    try:
        with (
            Client(f"localhost:{port}", MODEL_NAME) as client,
            servers.running(arguments, client) as process,
        ):
            yield Server(client, process, port)
    except servers.StartError as error:
        raise StartError(str(error)) from error


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
        *batching_flags(), *flags,
    ]  # fmt: skip


def batching_flags() -> list[str]:
    """The committed batching file, and the flags beside it."""
    return [
        "--enable_batching",
        f"--batching_parameters_file={BATCHING_CONFIG}",
        *(CONFIG / "flags").read_text().split(),
    ]


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise PipelineError(f"server command {command!r}: {error}: mend its quotes") from error
    if not words or not shutil.which(words[0]):
        raise PipelineError(f"server command {command!r}: no such program: install or correct it")
    return words


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
