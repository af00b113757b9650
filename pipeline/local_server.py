"""The embedded server as a process of its own, for as long as something here needs it."""

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tfs_client import Client, TFSError

from pipeline.config import MODEL_NAME
from pipeline.errors import PipelineError

BATCHING_CONFIG = Path(__file__).parents[1] / "serving/config/batching.config"
START_SECONDS = 120.0
STOP_SECONDS = 40.0


@contextlib.contextmanager
def serving(repository: Path, *flags: str) -> Iterator[Client]:
    """Serve a model repository on a free port, as `make serve` does on port 8500.

    Yields a client once the model is available. Further flags are the server's own.

    Raises:
        PipelineError: nothing is published there, or the server does not start.
    """
    base_path = repository / MODEL_NAME
    if not base_path.is_dir():
        raise PipelineError(f"no model is published in {repository}/: run `make train export`")
    port = free_port()
    command = [
        sys.executable, "-m", "serving", f"--port={port}", f"--model_name={MODEL_NAME}",
        f"--model_base_path={base_path}",
        "--enable_batching", f"--batching_parameters_file={BATCHING_CONFIG}", *flags,
    ]  # fmt: skip
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True) as process,
        _stopping(process),
        Client(f"localhost:{port}", MODEL_NAME) as client,
    ):
        _wait(process, client, output)
        yield client


def free_port() -> int:
    """A TCP port that nothing uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _stopping(process: subprocess.Popen) -> Iterator[None]:
    """End the process however the block is left."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(process: subprocess.Popen, client: Client, output: IO[str]) -> None:
    """Wait until the model is available, and no longer than the process lives."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            client.wait_until_ready(timeout=1.0)
            return
        except TFSError as error:
            if process.poll() is None and time.monotonic() < deadline:
                continue
            output.seek(0)
            lines = output.read().strip().splitlines() or ["it printed nothing"]
            raise PipelineError(f"the server did not start: {lines[-1]}") from error
