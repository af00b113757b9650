"""Where a TFDS data set's files come from when its own address cannot be reached.

Debian carries Fashion-MNIST as a package; it is used as installed, or fetched and unpacked into the
data folder, for which nobody needs to be root.
"""

import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError

REACH_SECONDS = 5
APT_SECONDS = 300


@dataclass(frozen=True)
class DebianPackage:
    """A package that holds a data set's original files."""

    name: str
    folder: str
    probe: str


DEBIAN_PACKAGES = {
    "fashion_mnist": DebianPackage(
        "dataset-fashion-mnist", "usr/share/datasets/fashion-mnist", "t10k-labels-idx1-ubyte.gz"
    ),
}


def find(dataset: str, upstream: str, cache: Path) -> str:
    """A base address that answers: upstream's own, or a `file://` folder of Debian's package.

    Args:
        dataset: TFDS name.
        upstream: the builder's own base address.
        cache: folder to unpack a fetched package in.

    Raises:
        PipelineError: neither can be had.
    """
    package = DEBIAN_PACKAGES.get(dataset)
    if package is None or _reachable(upstream + package.probe):
        return upstream
    for root in (Path("/"), cache / package.name):
        if (root / package.folder / package.probe).is_file():
            return _address(root / package.folder)
    print(f"{upstream} cannot be reached: fetching Debian's package {package.name}", flush=True)
    return _address(_fetch(package, cache) / package.folder)


def _address(folder: Path) -> str:
    return folder.resolve().as_uri() + "/"


def _reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, method="HEAD"), timeout=REACH_SECONDS
        ):
            return True
    except OSError:
        return False


def _fetch(package: DebianPackage, cache: Path) -> Path:
    """Download and unpack a package; returns the folder that stands for `/`."""
    target = cache / package.name
    target.mkdir(parents=True, exist_ok=True)
    try:
        if not _download(package.name, target, ()):
            # A machine that never ran `apt-get update` has no lists; keep ours in the cache.
            lists = _private_lists(target)
            _apt("update", target, lists)
            if not _download(package.name, target, lists):
                raise _unobtainable(package, "apt-get does not find it")
        for archive in target.glob("*.deb"):
            _run(["dpkg-deb", "-x", archive.name, "."], target)
            archive.unlink()
    except (OSError, subprocess.SubprocessError) as error:
        raise _unobtainable(package, _reason(error)) from error
    return target


def _download(name: str, target: Path, options: tuple[str, ...]) -> bool:
    try:
        _apt("download", target, (*options, name))
    except subprocess.CalledProcessError:
        return False
    return any(target.glob("*.deb"))


def _private_lists(target: Path) -> tuple[str, ...]:
    for folder in ("lists/partial", "archives/partial"):
        (target / "apt" / folder).mkdir(parents=True, exist_ok=True)
    root = (target / "apt").resolve()
    return (
        "-o", f"Dir::State::Lists={root}/lists",
        "-o", f"Dir::Cache={root}",
        "-o", "Debug::NoLocking=1",
    )  # fmt: skip


def _apt(verb: str, target: Path, options: tuple[str, ...]) -> None:
    _run(["apt-get", "-q", verb, *options], target)


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, timeout=APT_SECONDS
    )


def _reason(error: Exception) -> str:
    lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _unobtainable(package: DebianPackage, reason: str) -> PipelineError:
    return PipelineError(
        f"the data set's own address cannot be reached, nor Debian's package {package.name} "
        f"({reason}): name a mirror with --mirror file:///… (make: MIRROR=…)"
    )
