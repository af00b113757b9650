"""What Dockerfiles begin with: from a registry, or made of Debian's packages where none is reached.

A made one is Debian with its Python, of the same release and under the same name, which takes a
minute and a half as root. It gets this machine's certificate authorities and pip's settings, so
that a build can fetch packages as this machine does.
"""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import programs
from tests.containers.engine import Engine

PULL_SECONDS, MAKE_SECONDS = 300, 900
DEBIAN = re.compile(r"(python:3\.11-slim-|debian:)(?P<release>\w+?)(-slim)?")
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
STAND_IN = """FROM {}
USER 0:0
RUN printf '#!/bin/sh\\nexec python -m serving "$@"\\n' > /usr/bin/tensorflow_model_server \\
    && chmod 755 /usr/bin/tensorflow_model_server
CMD []
"""
PIP_SETTINGS = ("index_url", "extra_index_url", "trusted_host", "cert", "default_timeout")


def names(dockerfile: Path) -> set[str]:
    """The images that a Dockerfile begins with."""
    return set(re.findall(r"^FROM (\S+)", dockerfile.read_text(), re.M))


def provide(engine: Engine, name: str) -> None:
    """Have the engine know a base image."""
    if _had(engine, name):
        return
    debian = DEBIAN.fullmatch(name)
    if not debian:
        pytest.skip(
            f"{name} is in no registry that is reached, and is not made of Debian's packages"
        )
    made = f"debians-packages:{debian['release']}"
    if not _known(engine, made):
        with _root(debian["release"], name) as root:
            _import(engine, root, made)
    engine("tag", made, name)


def _known(engine: Engine, name: str) -> bool:
    return engine.run("image", "inspect", name).returncode == 0


def _had(engine: Engine, name: str) -> bool:
    """Whether the engine knows an image, or gets it from a registry."""
    if _known(engine, name):
        return True
    with contextlib.suppress(subprocess.TimeoutExpired):
        return engine.run("pull", "--quiet", name, timeout=PULL_SECONDS).returncode == 0
    return False


@contextlib.contextmanager
def standing_in(engine: Engine, name: str, embedded: str, built: str) -> Iterator[None]:
    """The embedded server's image under the name of TensorFlow Serving's, if that is not to be had.

    It has a `tensorflow_model_server`, which is the embedded server. It goes again, and so does
    what was built of it.
    """
    if _had(engine, name):
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "Dockerfile").write_text(STAND_IN.format(embedded))
        engine("build", "--network=none", "--tag", name, folder, timeout=MAKE_SECONDS)
    try:
        yield
    finally:
        engine.run("image", "rm", built)
        engine("image", "rm", "--no-prune", name)


@contextlib.contextmanager
def _root(release: str, name: str) -> Iterator[Path]:
    """The files of a made one."""
    debootstrap = programs.found("debootstrap")
    if not debootstrap or os.geteuid() != 0:
        pytest.skip(f"{name} is in no registry that is reached; root and debootstrap could make it")
    folder = programs.DEBIAN / "usr/share/debootstrap"
    settings = {"DEBOOTSTRAP_DIR": str(folder)} if folder.is_dir() else {}
    with tempfile.TemporaryDirectory(prefix="base-") as temporary:
        root = Path(temporary) / "root"
        words = [debootstrap, "--variant=minbase", f"--include={PACKAGES}", release, str(root)]
        done = subprocess.run(
            [*words, *_mirror(release)], env={**os.environ, "PATH": programs.PATH, **settings},
            capture_output=True, text=True, timeout=MAKE_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            last = (done.stdout + done.stderr).strip().splitlines()[-1:]
            pytest.skip(f"{name} cannot be made: debootstrap: {' '.join(last)}")
        _like_the_official(root)
        _like_this_machine(root)
        yield root


def _mirror(release: str) -> list[str]:
    """Where apt of this machine gets that release; debootstrap's own where it does not know it."""
    if not shutil.which("apt-get"):
        return []
    words = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    found = subprocess.run(
        [*words, f"Codename: {release}", "Component: main"], capture_output=True, text=True,
        check=False,
    ).stdout.split()  # fmt: skip
    return found[:1]


def _like_the_official(root: Path) -> None:
    """Its Python is called `python`, and nothing that was only fetched is kept."""
    (root / "usr/bin/python").symlink_to("python3")
    for folder in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(root / folder, ignore_errors=True)


def _like_this_machine(root: Path) -> None:
    if AUTHORITIES.exists():
        shutil.copy(AUTHORITIES, root / AUTHORITIES.relative_to("/"))
    settings = Path("/etc/pip.conf")
    text = settings.read_text() if settings.exists() else "[global]\n"
    for name in PIP_SETTINGS:
        value = os.environ.get(f"PIP_{name.upper()}")
        if value and not re.search(rf"^{name.replace('_', '[-_]')}\s*=", text, re.M):
            text = text.replace("[global]\n", f"[global]\n{name} = {value}\n", 1)
    (root / "etc/pip.conf").write_text(text)


def _import(engine: Engine, root: Path, name: str) -> None:
    words = ["tar", "--directory", str(root), "--create", "."]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as tar:
        done = engine.run(
            "import", "--message", "Debian's packages", "-", name, stdin=tar.stdout,
            timeout=MAKE_SECONDS,
        )  # fmt: skip
    assert done.returncode == tar.returncode == 0, done.stderr
