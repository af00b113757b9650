"""Programs that go on running after the command that started them, by their process id."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from tests.control_plane.errors import ControlPlaneError
from tests.control_plane.programs import PROGRAMS

STOP_SECONDS = 20.0


def start(name: str, flags: list[str], folder: Path) -> None:
    """Start a program; its log and process id are in the folder."""
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [PROGRAMS[name].path, *flags],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, start_new_session=True,
        )  # fmt: skip
    (folder / f"{name}.pid").write_text(str(process.pid))


def running(name: str, folder: Path) -> int | None:
    """The process id, while the process is still this program and not another with its number."""
    try:
        process_id = int((folder / f"{name}.pid").read_text())
        program = Path(f"/proc/{process_id}/exe").readlink()
    except (OSError, ValueError):
        return None
    return process_id if program == PROGRAMS[name].path else None


def stop(name: str, folder: Path) -> None:
    """Ask it to end, wait, and end it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        process_id = running(name, folder)
        if process_id is None:
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_id, number)
        deadline = time.monotonic() + STOP_SECONDS
        while running(name, folder) and time.monotonic() < deadline:
            time.sleep(0.05)
    (folder / f"{name}.pid").unlink(missing_ok=True)


def fail(name: str, folder: Path, what: str) -> ControlPlaneError:
    """An error with the end of the program's log."""
    log = folder / f"{name}.log"
    end = "\n".join(log.read_text().splitlines()[-8:])
    return ControlPlaneError(f"{name} {what}; the end of {log}:\n{end}")
