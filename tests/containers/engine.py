"""A Docker engine: the one that runs here, or one of these tests' own for as long as they run."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.containers import programs

START_SECONDS, STOP_SECONDS = 60.0, 60.0
NEEDED = ("dockerd", "containerd", "runc", "docker", "unshare", "setpriv")
# Images are kept between runs, as in any engine; `make clean` removes them.
DATA = programs.TOOLS / "engine"


class EngineError(AssertionError):
    """The engine refused what a test asked of it."""


@dataclass(frozen=True)
class Engine:
    """An engine that answers.

    Attributes:
        docker: path of its client.
        environment: what the client needs beside this process's own.
        version: the engine's.
        own: whether these tests started it.
    """

    docker: str
    environment: Mapping[str, str] = field(repr=False)
    version: str = ""
    own: bool = False

    def run(
        self, *words: object, timeout: float = 60, stdin: object = subprocess.DEVNULL
    ) -> subprocess.CompletedProcess[str]:
        """`docker WORDS…`, however it ends."""
        return subprocess.run(
            [self.docker, *map(str, words)], env={**os.environ, **self.environment}, stdin=stdin,
            capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def __call__(self, *words: object, timeout: float = 60) -> str:
        """`docker WORDS…`, which must succeed; what it prints."""
        done = self.run(*words, timeout=timeout)
        if done.returncode:
            raise EngineError(f"docker {' '.join(map(str, words))}: {done.stderr.strip()}")
        return done.stdout.strip()


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """One that containers of this machine run on; skips where there is none and none can start."""
    running = _running()
    if running:
        yield running
    else:
        with _started() as own:
            yield own


def _running() -> Engine | None:
    """The engine that `docker` finds by itself."""
    docker = shutil.which("docker")
    if docker is None:
        return None
    engine = Engine(docker, _builder(docker))
    asked = engine.run("info", "--format", "{{.ServerVersion}}|{{.OperatingSystem}}|{{.OSType}}")
    version, _, system = asked.stdout.strip().partition("|")
    if asked.returncode or not version:
        return None
    if "Docker Desktop" in system or not system.endswith("|linux"):
        pytest.skip(
            f"the Docker engine that runs ({system}) has no host network: containers need it here"
        )
    return Engine(docker, engine.environment, version)


def _builder(docker: str) -> dict[str, str]:
    """Newer clients build with a plugin, and the old builder must be asked for where it lacks."""
    asked = subprocess.run([docker, "buildx", "version"], capture_output=True, check=False)
    return {} if asked.returncode == 0 else {"DOCKER_BUILDKIT": "0"}


@contextlib.contextmanager
def _started() -> Iterator[Engine]:
    """`dockerd` of these tests' own: no network of its own, and nothing mounted that others see."""
    paths = {name: programs.found(name) for name in NEEDED}
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        pytest.skip(
            f"no Docker engine runs, and {', '.join(missing)} to start one is not installed: "
            "start Docker, or install Debian's docker.io"
        )
    if os.geteuid() != 0:
        pytest.skip("no Docker engine runs, and only root can start one: start Docker")
    DATA.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="engine-") as folder, _alone():
        socket = Path(folder) / "docker.sock"
        engine = Engine(
            str(paths["docker"]), {"DOCKER_HOST": f"unix://{socket}", "DOCKER_BUILDKIT": "0"}
        )
        with (
            (Path(folder) / "log").open("w+") as log,
            _daemon(Path(folder), socket, log) as process,
        ):
            version = _wait(engine, process, log)
            yield Engine(engine.docker, engine.environment, version, own=True)
            _end_containers(engine)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Two daemons would spoil each other's images."""
    with (DATA.parent / "engine.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pytest.skip("another run of these tests has the engine: wait for it to end")
        yield


@contextlib.contextmanager
def _daemon(folder: Path, socket: Path, log) -> Iterator[subprocess.Popen]:
    # It ends with this process also where that is killed. In a mount namespace of its own, so that
    # what it mounts is gone with it.
    words = ["setpriv", "--pdeathsig", "TERM", "unshare", "--mount", "--propagation", "private"]
    words += ["dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none"]
    words += [f"--data-root={DATA}", f"--exec-root={folder}/exec", f"--pidfile={DATA}.pid"]
    words += [f"--host=unix://{socket}"]
    environment = {**os.environ, "PATH": programs.PATH}
    with subprocess.Popen(
        words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(engine: Engine, process: subprocess.Popen, log) -> str:
    """The version, once it answers."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        asked = engine.run("version", "--format", "{{.Server.Version}}")
        if asked.returncode == 0:
            return asked.stdout.strip()
        time.sleep(0.2)
    log.seek(0)
    lines = log.read().strip().splitlines() or ["it printed nothing"]
    pytest.skip(f"dockerd does not start here: {lines[-1]}")


def _end_containers(engine: Engine) -> None:
    if left := engine("ps", "--all", "--quiet").split():
        engine("rm", "--force", *left)
