"""The client where nothing else is installed, in every Python there is that it says it supports."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "clients" / "pyproject.toml").read_text())["project"]
VERSIONS = [
    match[1]
    for classifier in PROJECT["classifiers"]
    if (match := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", classifier))
]
OLDEST_AND_NEWEST = [VERSIONS[0], VERSIONS[-1]]
OTHERS = [pytest.param(version, marks=pytest.mark.slow) for version in VERSIONS[1:-1]]
INSTALLED = "installed.txt"  # what was, before pytest
SHARED = ["test_calls.py", "test_attempts.py"]
IMPORTS_SECONDS, OWN_TIMES = 0.2, 1.6
RESIDENT_MB, OWN_MB = 45, 4
RUNS = 7


def interpreter(version: str) -> str | None:
    """One on the PATH, or pyenv's newest."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    pyenv = sorted(root.glob(f"versions/{version}.*/bin/python"))
    found = str(pyenv[-1]) if pyenv else shutil.which(f"python{version}")
    # pyenv has a command for each version that it knows, which fails where it is not chosen.
    works = found and subprocess.run([found, "--version"], capture_output=True, check=False)
    return found if works and not works.returncode else None


@pytest.fixture(scope="module", params=OLDEST_AND_NEWEST + OTHERS)
def python(request, tmp_path_factory) -> Path:
    """The interpreter of an environment with the client and what it requires."""
    found = interpreter(request.param)
    if not found:
        pytest.skip(f"no Python {request.param} is here")
    folder = tmp_path_factory.mktemp("client-only")
    subprocess.run([found, "-m", "venv", folder], check=True, timeout=100)
    python = folder / "bin" / "python"
    install(python, str(ROOT / "clients"))
    names = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    (folder / INSTALLED).write_text(output(python, names))
    return python


def install(python: Path, *what: str) -> None:
    # The pinned numpy has no wheels for the oldest Python.
    old = "3.10." in subprocess.check_output([python, "--version"], text=True)
    environment = os.environ | ({} if old else {"PIP_CONSTRAINT": str(ROOT / "constraints.txt")})
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what],
        env=environment, check=True, timeout=200,
    )  # fmt: skip


def output(python: Path, code: str) -> str:
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd="/"
    )
    return done.stdout


def test_it_needs_little_loads_fast_and_stays_small(python):
    installed = (python.parents[1] / INSTALLED).read_text().split()
    assert set(installed) - {"pip", "setuptools"} == {
        "tfs-client", "grpcio", "numpy", "protobuf", "typing_extensions",
    }  # fmt: skip
    code = (
        # The processor's time: what else the machine does is not the client's.
        "import time; t = time.process_time(); import {}; t = time.process_time() - t;"
        "status = open('/proc/self/status').read().split();"
        "print(t, int(status[status.index('VmHWM:') + 1]) / 1024)"
    )

    needs, client = "grpc, numpy", "tfs_client"
    least: dict[str, list[float]] = {}
    for modules in (needs, client) * RUNS:  # in turns
        run = list(map(float, output(python, code.replace("{}", modules)).split()))
        least[modules] = list(map(min, run, least.get(modules, run)))
    seconds, megabytes = least[client]
    needed_seconds, needed_megabytes = least[needs]
    # What gRPC and numpy themselves take differs by ten megabytes from one Python to another, and
    # twofold from machine to machine.
    assert seconds < max(IMPORTS_SECONDS, OWN_TIMES * needed_seconds)
    assert megabytes < max(RESIDENT_MB, needed_megabytes + OWN_MB)


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
    done = subprocess.run(
        [tfs, "completion", "bash"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, "pip install 'tfs-client[command]'" in done.stderr) == (2, True)


def test_what_both_clients_do_is_the_same_there(python):
    install(python, "pytest")
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", ".", "--confcutdir", ".",
         "-p", "no:cacheprovider", *SHARED],
        cwd=ROOT / "tests" / "clients", capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
