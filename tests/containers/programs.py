"""Programs that these tests run, and what a test says that lacks one."""

import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT

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
