"""What a measurement was made on, and by what: enough to repeat it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
PACKAGES = ("tfs-client", "grpcio", "numpy", "hdrhistogram")
_STAT = Path("/proc/stat")
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_MEMORY_MAX = Path("/sys/fs/cgroup/memory.max")


def cpu_limit() -> float:
    """Cores that this process may use: the least of the machine's, the affinity's and the cgroup's.

    Of cgroup version 2, /sys/fs/cgroup/cpu.max has the quota and the period in microseconds, as
    Kubernetes writes a container's CPU limit
    (https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files).
    """
    cores = float(len(os.sched_getaffinity(0)))
    quota, _, period = _text(_CPU_MAX, "max 100000").partition(" ")
    return cores if quota == "max" else min(cores, int(quota) / int(period))


class ProcessorTime(NamedTuple):
    """Of all processors, since the machine started; in ticks.

    Attributes:
        wanted: by processes here.
        stolen: of that, what a virtual machine's host gave to others
            (https://man7.org/linux/man-pages/man5/proc_stat.5.html).
    """

    wanted: int
    stolen: int

    @classmethod
    def now(cls) -> ProcessorTime:
        """Until now; nothing where Linux does not tell."""
        _, *ticks = _text(_STAT, "cpu 0 0 0 0 0 0 0 0").splitlines()[0].split()
        user, nice, system, _, _, irq, soft_irq, stolen = map(int, ticks[:8])
        return cls(user + nice + system + irq + soft_irq + stolen, stolen)

    def stolen_since(self, before: ProcessorTime) -> float:
        """The share that was stolen, from 0 to 1."""
        return (self.stolen - before.stolen) / max(1, self.wanted - before.wanted)


def describe() -> dict[str, str]:
    """Name -> value. Of the machine's name and its paths it says nothing."""
    cpu = _cpuinfo()
    flags = cpu.get("flags", "").split()
    instructions = ", ".join(name for name in INSTRUCTIONS if name in flags)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    limit = _text(_MEMORY_MAX, "max")
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": _commit(),
        "processor": f"{cpu.get('model name', platform.machine())} ({instructions or 'unknown'})",
        "cores": f"{cpu_limit():g} of {os.cpu_count()}, load before {os.getloadavg()[0]:.1f}",
        "memory": f"{memory:.0f} GB, limit {'none' if limit == 'max' else limit}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "command": " ".join([_program(Path(sys.argv[0])), *sys.argv[1:]]),
    }


def _program(path: Path) -> str:
    return path.parent.name if path.name == "__main__.py" else path.name


def _cpuinfo() -> dict[str, str]:
    lines = _text(Path("/proc/cpuinfo"), "").split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _text(path: Path, otherwise: str) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # another kind of cgroup, or none
        return otherwise


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _commit() -> str:
    """Of the folder's repository, with a `+` if it has changes."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "none"
    return found.stdout.strip()
