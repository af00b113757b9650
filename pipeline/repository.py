"""The model repository on a file system: version directories that come whole and go whole.

models/
.lock             locked by whoever changes something here
models.config     which versions servers load, and their labels   (promote, rollback)
history.json      which versions were stable before               (promote, rollback)
googlenet/        1, 2, …: the versions; servers read directories named by a number only

Servers that poll a repository may load a partial copy (tensorflow/serving issues 1086, 572, 631),
so a version is copied aside and put in place by one rename; it is renamed aside before it is
deleted. `open_repository` also knows object stores, which have no such rename: `object_store`.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlparse

from pipeline import files
from pipeline.config import MODEL_NAME
from pipeline.errors import PipelineError

SAVED_MODEL = "saved_model.pb"  # a directory without it is no version
LOCK_SECONDS = 600.0
_STAGING, _REMOVED = ".staging-", ".removed-"
_LOCK_POLL_SECONDS = 0.05


class Repository(Protocol):
    """The versions of one model, and the small files that go with them.

    Attributes:
        place: where it is, as the user named it.
        base_path: what servers call the model's directory: absolute.
    """

    place: str
    base_path: str

    def create(self) -> None:
        """Make the model's directory if it is not there."""

    def changing(self, wait_seconds: float = LOCK_SECONDS) -> AbstractContextManager[None]:
        """A block in which the repository is changed; what killed processes left is removed first.

        Raises:
            PipelineError: nothing is published there, or another process keeps it locked.
        """

    def versions(self) -> list[int]:
        """The complete versions, ascending."""

    def add(self, exported: Path, sums: Mapping[str, str], extra: Mapping[str, str]) -> int:
        """Copy an export in as the highest version + 1; returns that.

        Args:
            exported: the folder to copy.
            sums: SHA-256 of each of its files by name; the copy's are compared with it.
            extra: texts of further files by name.

        Raises:
            PipelineError: a file of the copy is not as it should be.
        """

    def fetch(self, version: int, folder: Path) -> None:
        """Copy a version to a folder of this machine that is not there yet."""

    def remove(self, version: int) -> None:
        """Delete a version in such a way that no server loads a half of it."""

    def read(self, name: str) -> str | None:
        """The text of a file by its path below the repository; None if it is not there."""

    def sha256(self, name: str) -> str | None:
        """The SHA-256 of a file by its path below the repository; None if it is not there."""

    def write(self, name: str, text: str) -> None:
        """Replace a file whole."""

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""


def open_repository(place: Path | str) -> Repository:
    """The repository at a path, or at an address of any file system that TensorFlow reads.

    Raises:
        PipelineError: the address is not one of a folder.
    """
    if folder := local_folder(place):
        return LocalRepository(folder)
    from pipeline.object_store import ObjectStore  # TensorFlow's import takes seconds

    return ObjectStore(str(place))


def local_folder(place: Path | str) -> Path | None:
    """The folder of a repository on a file system of this machine's kernel; None of another."""
    if "://" not in str(place):
        return Path(place)
    address = urlparse(str(place))
    if address.scheme != "file":
        return None
    if address.netloc not in ("", "localhost") or address.query or address.fragment:
        raise PipelineError(f"repository {place}: write file:///path, or the path alone")
    return Path(unquote(address.path))


class LocalRepository:
    """A repository on a file system of this machine's kernel: see `Repository`.

    Whoever changes something holds an exclusive flock on `.lock`, which ends with its process
    however that ends. The file system must support flock for all machines that publish.
    """

    def __init__(self, place: Path | str) -> None:
        self.place = str(place)
        self._root = Path(place)
        self._base = self._root / MODEL_NAME
        self.base_path = str(self._base.resolve())

    def create(self) -> None:
        self._base.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def changing(self, wait_seconds: float = LOCK_SECONDS) -> Iterator[None]:
        if not self._base.is_dir():
            raise nothing_published(self.place)
        descriptor = os.open(self._root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._wait_for(descriptor, wait_seconds)
            self._remove_leftovers()
            yield
        finally:
            os.close(descriptor)

    def versions(self) -> list[int]:
        return [n for n in self._numbers() if (self._base / str(n) / SAVED_MODEL).is_file()]

    def add(self, exported: Path, sums: Mapping[str, str], extra: Mapping[str, str]) -> int:
        staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=self._base))
        try:
            staged = staging / "version"
            shutil.copytree(exported, staged)
            _make_writable(staged)
            for name, text in extra.items():
                (staged / name).write_text(text)
            files.sync_tree(staged)
            compare(sums, files.checksums(staged), extra, staged)
            version = self._rename_to_next(staged)
        finally:
            _make_writable(staging)
            shutil.rmtree(staging, ignore_errors=True)
        files.sync(self._base)
        return version

    def fetch(self, version: int, folder: Path) -> None:
        shutil.copytree(self._base / str(version), folder)

    def remove(self, version: int) -> None:
        aside = Path(tempfile.mkdtemp(prefix=_REMOVED, dir=self._base))
        _make_writable(self._base / str(version))
        (self._base / str(version)).rename(aside / str(version))
        files.sync(self._base)
        shutil.rmtree(aside)

    def read(self, name: str) -> str | None:
        try:
            return (self._root / name).read_text()
        except FileNotFoundError:
            return None

    def sha256(self, name: str) -> str | None:
        try:
            return files.sha256(self._root / name)
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str) -> None:
        files.write(self._root / name, lambda partial: partial.write_text(text))

    def delete(self, name: str) -> None:
        (self._root / name).unlink(missing_ok=True)
        files.sync(self._root)

    def _numbers(self) -> list[int]:
        return numbers(path.name for path in self._base.iterdir()) if self._base.is_dir() else []

    def _wait_for(self, descriptor: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise PipelineError(
                        f"another process has been changing {self.place} for {seconds:g} s: wait "
                        f"for it, or end it (`fuser {self.place}/.lock` names it)"
                    ) from None
            time.sleep(_LOCK_POLL_SECONDS)

    def _remove_leftovers(self) -> None:
        """Nobody else is changing anything now, so what lies aside is a killed process's."""
        for prefix in (_STAGING, _REMOVED):
            for path in self._base.glob(f"{prefix}*"):
                _make_writable(path)
                shutil.rmtree(path)
        for path in self._root.glob(f"{files.PARTIAL}*"):
            shutil.rmtree(path)

    def _rename_to_next(self, staged: Path) -> int:
        """Rename fails where somebody without the lock took the number; then the next is tried."""
        version = max(self._numbers(), default=0) + 1
        while True:
            try:
                staged.rename(self._base / str(version))
                return version
            except OSError:
                if not (self._base / str(version)).exists():
                    raise
                version += 1


def _make_writable(folder: Path) -> None:
    """So that it can be renamed and deleted: a copy of a read-only export is read-only too."""
    for place, _, _ in os.walk(folder):
        with contextlib.suppress(PermissionError):  # somebody else's: renaming it says so
            os.chmod(place, os.stat(place).st_mode | stat.S_IRWXU)


def nothing_published(place: str) -> PipelineError:
    """The error for a repository without versions."""
    return PipelineError(f"no model is published in {place}/: run `make train export`")


def numbers(names: Iterable[str]) -> list[int]:
    """The numbers among the names of files, ascending, each once.

    Of 007 and 7 servers load 7, the last in the alphabet, and only that is a version here.
    """
    found = {int(name) for name in names if name.isascii() and name.isdigit()}
    return sorted(number for number in found if number < 2**63)  # servers count with 64 bits


def compare(
    promised: Mapping[str, str], found: Mapping[str, str], extra: Iterable[str], folder: Path | str
) -> None:
    """Compare files with the checksums they should have.

    Args:
        promised: SHA-256 by name.
        found: the same, of the files that are there.
        extra: names that may be there besides.
        folder: where they are, for the message.

    Raises:
        PipelineError: naming a file that is missing, added or changed.
    """
    for name in sorted((promised.keys() | found.keys()) - set(extra)):
        if promised.get(name) != found.get(name):
            raise PipelineError(
                f"{folder}/{name} is not as its manifest says: export the run again"
            )
