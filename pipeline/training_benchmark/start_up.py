"""How soon training trains: from the start of its process to the end of its first step."""

import contextlib
import os
import pty
import select
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Mapping
from pathlib import Path

from tfs_client.bench import servers

from pipeline.errors import PipelineError

LIMIT_SECONDS = 600.0  # longest wait for a first step
# The progress bar shows a loss from the end of the first step on, and it does on a terminal only.
SIGN = b"loss "
TERMINAL = (24, 200)  # lines and columns: the bar leaves out what does not fit


def first_step_seconds(data_dir: Path, mirror: str | None = None) -> float:
    """Start `python -m pipeline train --preset best`, and end it after its first step.

    Args:
        data_dir: see `dataset.load`; its data set should be prepared already.
        mirror: see `dataset.load`.

    Returns:
        Seconds from the start of the process to the end of the first step.

    Raises:
        PipelineError: training did not get that far.
    """
    with tempfile.TemporaryDirectory() as runs:
        command = [
            sys.executable, "-m", "pipeline", "train", "--preset", "best", "--runs", runs,
            "--data-dir", str(data_dir), *(["--mirror", mirror] if mirror else []),
        ]  # fmt: skip
        # What TensorFlow writes aside goes with the run.
        return seconds_until(SIGN, command, environment={"TMPDIR": runs})


def seconds_until(
    sign: bytes,
    command: list[str],
    limit_seconds: float = LIMIT_SECONDS,
    environment: Mapping[str, str] | None = None,
) -> float:
    """Run a command until it shows something on the terminal that is its standard error.

    Args:
        sign: what to wait for.
        command: ended then.
        limit_seconds: longest wait.
        environment: variables that differ from this process's.

    Raises:
        PipelineError: it ended before, or took too long.
    """
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, TERMINAL)
    with os.fdopen(ours, "rb", buffering=0) as shown, contextlib.ExitStack() as stack:
        start = time.monotonic()
        with os.fdopen(theirs, "wb"):  # left open, its end would not be seen
            environ = {**os.environ, **(environment or {})}
            session = servers.session(
                command, stdout=subprocess.DEVNULL, stderr=theirs, env=environ
            )
            process = stack.enter_context(session)
        stack.callback(process.kill)  # nothing of it is kept
        _wait_for(sign, shown.fileno(), start + limit_seconds)
        return time.monotonic() - start


def _wait_for(sign: bytes, terminal: int, until: float) -> None:
    seen = b""
    while sign not in seen:
        ready = select.select([terminal], [], [], max(0.0, until - time.monotonic()))[0]
        read = _read(terminal) if ready else b""
        if not read:
            lines = seen.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            what = "ended" if ready else "was too slow"
            raise PipelineError(f"training {what} before its first step: {lines[-1]}")
        seen += read


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's word for a terminal whose other end is closed
        return b""
