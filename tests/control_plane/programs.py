"""The control plane's programs: built by Go from published modules, once, into a cache.

go.mod beside this file names each module's version. kube-apiserver takes most of the time; what Go
has compiled stays in its own cache, so that an interrupted build goes on where it was.
"""

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.control_plane.errors import ControlPlaneError

HERE = Path(__file__).parent
CACHE = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "googlenet-serving/cluster"
)


@dataclass(frozen=True)
class Program:
    """One of them.

    Attributes:
        name: of its file.
        module: whose version in go.mod is its own.
        package: within the module.
    """

    name: str
    module: str
    package: str = ""

    @property
    def version(self) -> str:
        """Such as `v1.37.2`."""
        found = re.search(rf"^\s+{re.escape(self.module)} (v\S+)", go_mod(), re.M)
        if found is None:
            raise ControlPlaneError(f"{HERE / 'go.mod'} names no version of {self.module}")
        return found[1]

    @property
    def path(self) -> Path:
        """Where it is, once it is built."""
        return CACHE / f"{self.module.replace('/', '-')}@{self.version}" / self.name


KUBERNETES = "k8s.io/kubernetes"
PROGRAMS = {
    program.name: program
    for program in (
        Program("etcd", "go.etcd.io/etcd/server/v3"),
        *(
            Program(name, KUBERNETES, f"/cmd/{name}")
            for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
        ),
        Program("kwok", "sigs.k8s.io/kwok", "/cmd/kwok"),
    )
}


def go_mod() -> str:
    return (HERE / "go.mod").read_text()


def go() -> str:
    """Go's own command."""
    found = os.environ.get("GO") or shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if found is None:
        raise ControlPlaneError(
            "Go builds the control plane and is not on the PATH: install it (https://go.dev/dl), "
            "or name it with GO=/path/to/go"
        )
    return found


def build() -> None:
    """Build what the cache does not hold."""
    missing = [program for program in PROGRAMS.values() if not program.path.exists()]
    if missing:
        print(f"Building {len(missing)} programs into {CACHE}: half an hour on two cores")
    for program in missing:
        started = time.monotonic()
        _build(program)
        print(f"  {program.name} {program.version}: {time.monotonic() - started:.0f} s", flush=True)


def _build(program: Program) -> None:
    program.path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = program.path.with_suffix(".building")
    version = PROGRAMS["kube-apiserver"].version
    minor = version.split(".")[1]
    stamp = "k8s.io/component-base/version"  # what it says its version is; else v0.0.0
    stamps = {"gitVersion": version, "gitMajor": "1", "gitMinor": minor}
    flags = " ".join(("-s -w", *(f"-X {stamp}.{name}={value}" for name, value in stamps.items())))
    done = subprocess.run(
        [go(), "build", "-ldflags", flags, "-o", unfinished, program.module + program.package],
        cwd=HERE, check=False, env=os.environ | {"CGO_ENABLED": "0"},
    )  # fmt: skip
    if done.returncode:
        raise ControlPlaneError(f"go build of {program.name} failed with {done.returncode}, above")
    unfinished.rename(program.path)
