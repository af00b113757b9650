"""Servers as processes of their own, for as long as a block needs them."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO

from tfs_client._client import Client
from tfs_client._errors import TFSError

START_SECONDS, STOP_SECONDS = 120.0, 40.0
_given: collections.deque[int] = collections.deque(maxlen=256)  # not yet bound, perhaps


class StartError(TFSError):
    """The server did not start, or the model did not become available."""


@contextlib.contextmanager
def running(
    words: Sequence[str], client: Client, cores: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A server that serves, and ends with the block.

    Args:
        words: the command.
        client: of the model that it is to serve.
        cores: that it may use, of those of this process; None for all.

    Raises:
        StartError: it cannot be run, it ends, or the model is not available in time; with its last
            line.
    """
    with (
        tempfile.TemporaryFile("w+") as output,
        _start(words, output, cores) as process,
        _stopping(process),
    ):
        _wait(process, client, output)
        yield process


def free_port() -> int:
    """A TCP port that nothing uses just now, and that nobody here was given lately."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _given:
            _given.append(port)
            return port


def _start(words: Sequence[str], output: IO[str], cores: int | None) -> subprocess.Popen[str]:
    """A process inherits the cores of the thread that starts it."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(own)[:cores])
    try:
        return subprocess.Popen(
            words, stdout=output, stderr=output, stdin=subprocess.DEVNULL, text=True,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise StartError(f"{words[0]} cannot be run: {error.strerror}") from error
    finally:
        os.sched_setaffinity(0, own)


@contextlib.contextmanager
def _stopping(process: subprocess.Popen[str]) -> Iterator[None]:
    """End the process, and what it started, however the block is left."""
    try:
        yield
    finally:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        _signal(process, signal.SIGKILL)  # a shell ends before the server that it started


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)  # it leads a session, hence a group, of its own


def _wait(process: subprocess.Popen[str], client: Client, output: IO[str]) -> None:
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
