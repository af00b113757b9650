"""The model repository where there is no atomic rename: object stores, through tf.io.gfile.

What is guaranteed, if a renamed file appears whole and listings show every finished write, as on
Google Cloud Storage and S3:

- Two publishers never get the same number: each writes a claim, then lists, and gives way if it
  sees another claim to the number, or the version itself.
- A version gets its `saved_model.pb` last, by renaming that one file, after all files were read
  back and compared, so that no server can load a part of one. A server may see the directory before
  that; it then reports that it cannot load it, and tries again.
- `models.config` and `history.json` are replaced whole.

What is not: there is no lock, so two people must not move labels or prune at the same time; and the
files of a publisher that was killed stay, hidden from this pipeline, until a change made a day
later removes them.
"""

import contextlib
import functools
import hashlib
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tensorflow as tf

from pipeline.config import MODEL_NAME
from pipeline.errors import PipelineError, reason
from pipeline.repository import LOCK_SECONDS, SAVED_MODEL, compare, numbers

STALE_SECONDS = 24 * 3600.0  # publishing takes seconds; nobody is that slow
TRIES = 100
_CLAIM = re.compile(r"\.claim-(\d+)-(\d+)-\w+")  # number, time in seconds, publisher

Method = TypeVar("Method", bound=Callable[..., Any])


def _translating(method: Method) -> Method:
    """Turn TensorFlow's errors into ours."""

    @functools.wraps(method)
    def call(self, *arguments):
        try:
            return method(self, *arguments)
        except tf.errors.OpError as error:
            raise PipelineError(f"{self.place}: {reason(error)}") from error

    return call  # type: ignore[return-value]


class ObjectStore:
    """A repository at an address that tf.io.gfile reads: see `pipeline.repository.Repository`.

    Raises:
        PipelineError: the address is a scheme alone, which TensorFlow takes for a local folder.
    """

    def __init__(self, place: str, stale_seconds: float = STALE_SECONDS) -> None:
        if not place.partition("://")[2].strip("/"):
            raise PipelineError(f"repository {place}: name a bucket, such as gs://bucket/models")
        self.place = place.rstrip("/")
        self.base_path = f"{self.place}/{MODEL_NAME}"
        self._stale_seconds = stale_seconds

    @_translating
    def create(self) -> None:
        tf.io.gfile.makedirs(self.base_path)

    @contextlib.contextmanager
    def changing(self, wait_seconds: float = LOCK_SECONDS) -> Iterator[None]:
        del wait_seconds  # there is no lock to wait for
        self._remove_leftovers()
        yield

    @_translating
    def versions(self) -> list[int]:
        return [n for n in numbers(self._names()) if self._is_complete(n)]

    @_translating
    def add(self, exported: Path, sums: Mapping[str, str], extra: Mapping[str, str]) -> int:
        version, claim = self._claim()
        target = self._version_path(version)
        try:
            self._copy(exported, sums, extra, target)
        except BaseException:
            self._remove_tree(version)
            raise
        finally:
            tf.io.gfile.remove(claim)
        return version

    @_translating
    def fetch(self, version: int, folder: Path) -> None:
        base = self._version_path(version)
        for place, _, names in tf.io.gfile.walk(base, onerror=_raise):
            below = folder / place.removeprefix(base).strip("/")
            below.mkdir(parents=True, exist_ok=True)
            for name in names:
                tf.io.gfile.copy(f"{place.rstrip('/')}/{name}", str(below / name))

    @_translating
    def remove(self, version: int) -> None:
        claim = self._write_claim(version)  # should this be killed, a later change goes on with it
        self._remove_tree(version)
        tf.io.gfile.remove(claim)

    @_translating
    def read(self, name: str) -> str | None:
        try:
            return self._bytes(f"{self.place}/{name}").decode()
        except tf.errors.NotFoundError:
            return None

    @_translating
    def sha256(self, name: str) -> str | None:
        try:
            return self._digest(f"{self.place}/{name}")
        except tf.errors.NotFoundError:
            return None

    @_translating
    def write(self, name: str, text: str) -> None:
        """An object is replaced whole when it is closed; elsewhere the rename does it."""
        path = f"{self.place}/{name}"
        aside = f"{path}.{uuid.uuid4().hex}"
        self._put(aside, text.encode())
        tf.io.gfile.rename(aside, path, overwrite=True)

    @_translating
    def delete(self, name: str) -> None:
        with contextlib.suppress(tf.errors.NotFoundError):
            tf.io.gfile.remove(f"{self.place}/{name}")

    def _claim(self) -> tuple[int, str]:
        """A number nobody else has, and the file that says so until the version is there.

        Of two who see only themselves after writing, one wrote after the other's listing and thus
        before its own: it would have seen the other's claim, or the version made of it.
        """
        for _ in range(TRIES):
            names = self._names()
            number = max([*numbers(names), *_claimed(names), 0]) + 1
            claim = self._write_claim(number)
            seen, own = set(self._names()), claim.rpartition("/")[2]
            if own not in seen:
                tf.io.gfile.remove(claim)
                raise PipelineError(f"{self.base_path} cannot be listed: publish again")
            others = seen - {own}
            if number not in {*numbers(others), *_claimed(others)}:
                return number, claim
            tf.io.gfile.remove(claim)
            time.sleep(random.uniform(0, 0.2))
        raise PipelineError(f"{self.place}: too many publishers at once: publish again")

    def _write_claim(self, number: int) -> str:
        claim = f"{self.base_path}/.claim-{number}-{int(time.time())}-{uuid.uuid4().hex}"
        self._put(claim, b"")
        return claim

    def _copy(
        self, exported: Path, sums: Mapping[str, str], extra: Mapping[str, str], target: str
    ) -> None:
        """All under their own names but `saved_model.pb`, which gets its when all is checked."""
        aside = f"{target}/partial-{SAVED_MODEL}"
        paths = {name: f"{target}/{name}" for name in sums} | {SAVED_MODEL: aside}
        for name, path in paths.items():
            self._put(path, (exported / name).read_bytes())
        for name, text in extra.items():
            self._put(f"{target}/{name}", text.encode())
        compare(sums, {name: self._digest(path) for name, path in paths.items()}, (), target)
        tf.io.gfile.rename(aside, f"{target}/{SAVED_MODEL}")

    def _remove_tree(self, version: int) -> None:
        """Without `saved_model.pb` no server can load what is left of the rest."""
        path = self._version_path(version)
        with contextlib.suppress(tf.errors.NotFoundError):
            tf.io.gfile.remove(f"{path}/{SAVED_MODEL}")
        with contextlib.suppress(tf.errors.NotFoundError):
            tf.io.gfile.rmtree(path)

    @_translating
    def _remove_leftovers(self) -> None:
        for name in self._names():
            claim = _CLAIM.fullmatch(name)
            if claim and int(claim[2]) < time.time() - self._stale_seconds:
                if not self._is_complete(int(claim[1])):
                    self._remove_tree(int(claim[1]))
                tf.io.gfile.remove(f"{self.base_path}/{name}")

    def _is_complete(self, version: int) -> bool:
        return tf.io.gfile.exists(f"{self._version_path(version)}/{SAVED_MODEL}")

    def _version_path(self, version: int) -> str:
        return f"{self.base_path}/{version}"

    def _names(self) -> list[str]:
        try:
            return [name.rstrip("/") for name in tf.io.gfile.listdir(self.base_path)]
        except tf.errors.NotFoundError as error:
            # `listdir` says so too where the store could not be asked; `exists` says that it could.
            if tf.io.gfile.exists(self.base_path):
                raise PipelineError(f"{self.base_path} cannot be listed: try again") from error
            return []

    def _put(self, path: str, data: bytes) -> None:
        tf.io.gfile.makedirs(path.rpartition("/")[0])
        with tf.io.gfile.GFile(path, "wb") as file:
            file.write(data)

    def _bytes(self, path: str) -> bytes:
        with tf.io.gfile.GFile(path, "rb") as file:
            return file.read()

    def _digest(self, path: str) -> str:
        return hashlib.sha256(self._bytes(path)).hexdigest()


def _raise(error: tf.errors.OpError) -> None:
    raise error


def _claimed(names: Iterable[str]) -> list[int]:
    return [int(claim[1]) for claim in map(_CLAIM.fullmatch, names) if claim]
