"""Servers as processes of their own, for as long as a block needs them."""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from tfs_client._client import Client
from tfs_client._errors import TFSError

START_SECONDS, STOP_SECONDS = 120.0, 40.0
# The even ones: REST's is often the next. Linux gives none of these to a socket that is content
# with any (ip_local_port_range), nor does Kubernetes to a Service.
_PORTS = range(20_000, 30_000, 2)
_MOST_GIVEN = 256
_given: collections.deque[int] = collections.deque()  # file descriptors, see _take
_ENDING = signal.SIGTERM, signal.SIGHUP, signal.SIGINT


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
    with tempfile.TemporaryFile("w+", errors="replace") as output, contextlib.ExitStack() as stack:
        try:
            with _on_cores(cores):
                started = session(words, stdout=output, stderr=output, text=True)
                process = stack.enter_context(started)
        except OSError as error:
            raise StartError(f"{words[0]} cannot be run: {error.strerror}") from error
        _wait(process, client, output)
        yield process


@contextlib.contextmanager
def session(words: Sequence[str], **settings: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that leads a session of its own; it, and what it started, end with the block.

    Args:
        words: the command.
        settings: of subprocess.Popen.

    Raises:
        OSError: it cannot be run.
    """
    with contextlib.ExitStack() as stack:
        with _signals_put_off():  # or one that comes now would leave a process behind
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, start_new_session=True, **settings
            )
            stack.enter_context(_stopping(process))
        yield process


def free_port() -> int:
    """A TCP port that nobody uses just now, nor the next one; nobody else who asks here has it."""
    while True:
        port = secrets.choice(_PORTS)
        if _unused(port) and _unused(port + 1) and _take(port):
            return port


def _unused(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("", port))
        return True
    return False


def _take(port: int) -> bool:
    """Whether no other process has it: one may not have bound it yet.

    A name that is not a path is Linux's, and goes with the process that holds it.
    """
    with socket.socket(socket.AF_UNIX) as mark:
        try:
            mark.bind(f"\0tfs-client: TCP port {port}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        _given.append(mark.detach())
    if len(_given) > _MOST_GIVEN:
        os.close(_given.popleft())
    return True


@contextlib.contextmanager
def _on_cores(cores: int | None) -> Iterator[None]:
    """A process inherits the cores of the thread that starts it."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(own)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


@contextlib.contextmanager
def _signals_put_off() -> Iterator[None]:
    """Those that ask this process to end arrive when the block has ended.

    They are not blocked: a process that is started in here would never be asked to end.
    """
    if threading.current_thread() is not threading.main_thread():  # no other has handlers
        yield
        return
    came: list[int] = []
    before = _handle(dict.fromkeys(_ENDING, lambda number, _: came.append(number)))
    try:
        yield
    finally:
        _handle(before)
        for each in came:
            signal.raise_signal(each)


def _handle(handlers: Mapping[signal.Signals, Any]) -> dict[signal.Signals, Any]:
    """Handle signals otherwise, all at once; returns how they were."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
    try:
        return {number: signal.signal(number, handler) for number, handler in handlers.items()}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def _stopping(process: subprocess.Popen[Any]) -> Iterator[None]:
    """End the process, and what it started, however the block is left."""
    try:
        yield
    finally:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        _signal(process, signal.SIGKILL)  # a shell ends before the server that it started
        process.wait()


def _signal(process: subprocess.Popen[Any], number: signal.Signals) -> None:
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
