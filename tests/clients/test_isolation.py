"""The client where nothing else is installed."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the client and what it requires."""
    folder = tmp_path_factory.mktemp("client-only")
    venv.create(folder, with_pip=True)
    environment = os.environ | {"PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    subprocess.run(
        [folder / "bin" / "python", "-m", "pip", "install", "--quiet",
         "--disable-pip-version-check", str(ROOT / "clients")],
        env=environment, check=True, timeout=200,
    )  # fmt: skip
    return folder / "bin" / "python"


def output(python: Path, code: str) -> str:
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd="/"
    )
    return done.stdout


def test_it_needs_and_loads_no_tensorflow(python):
    code = "import tfs_client, sys; assert 'tensorflow' not in sys.modules; import importlib.util; "
    assert output(python, code + "print(importlib.util.find_spec('tensorflow'))") == "None\n"


def test_import_takes_under_300_ms(python):
    code = "import time; t = time.perf_counter(); import tfs_client; print(time.perf_counter() - t)"
    assert min(float(output(python, code)) for _ in range(5)) < 0.3


def test_it_classifies(python, client):
    code = (
        "import numpy as np, tfs_client;"
        f"client = tfs_client.Client({client.address!r});"
        "print(client.classify(np.full((28, 28, 3), (230, 30, 20), np.uint8)).label)"
    )
    import numpy as np

    expected = client.classify(np.full((28, 28, 3), (230, 30, 20), np.uint8)).label
    assert output(python, code) == f"{expected}\n"
    tfs = python.parent / "tfs"
    done = subprocess.run(
        [tfs, "status", "--address", client.address], capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    assert done.stdout == "googlenet version 1: AVAILABLE\n"
    assert sys.executable != str(python)
