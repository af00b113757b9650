"""The embedded server as a process of its own, for as long as a test needs it."""

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.local_server import free_port
from tests.conftest import ROOT

START_SECONDS, STOP_SECONDS = 60.0, 40.0


@dataclass(frozen=True)
class Started:
    """A server that answers.

    Attributes:
        port: of gRPC.
        rest_port: of REST; 0 for none.
        process: it.
    """

    port: int
    rest_port: int
    process: subprocess.Popen


@contextlib.contextmanager
def serving(*flags: object, rest: bool = False) -> Iterator[Started]:
    """`python -m serving FLAGS…` on free ports, once they are open."""
    port, rest_port = free_port(), free_port() if rest else 0
    words = [f"--port={port}", f"--rest_api_port={rest_port}", *map(str, flags)]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [sys.executable, "-m", "serving", *words], cwd=ROOT, stdout=log, stderr=log
        ) as process,
    ):
        try:
            _wait(process, rest_port or port)  # REST opens last
            yield Started(port, rest_port, process)
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read()[-4000:])
            raise
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            process.kill()


def _wait(process: subprocess.Popen, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the server did not start")
