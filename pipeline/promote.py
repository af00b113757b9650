"""Moves the labels `stable` and `canary`: promotion and roll-back.

    python -m pipeline promote 3 --label canary [--address host:port] [--repository models]
    python -m pipeline rollback [--address host:port]

Servers follow models.config if they run with `--model_config_file=models/models.config` and
`--model_config_file_poll_wait_seconds=1`. They refuse a label for a version that they have not
loaded, and all of the file with it; so the file first says to load the version, with the labels as
the server at --address has or can have them, and names the label once it has loaded it. A server of
this model needs some seconds for that. If it cannot, the file is put back. Without --address both
are written at once, which suits servers that are started later, with
`--allow_version_labels_for_unavailable_models`.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tfs_client import (
    Client,
    InvalidRequestError,
    NotFoundError,
    ServerError,
    TFSError,
    VersionStatus,
)

from pipeline import labels
from pipeline.config import MODEL_NAME
from pipeline.errors import PipelineError, choice
from pipeline.labels import CONFIG, Served
from pipeline.repository import Repository, nothing_published, open_repository

WAIT_SECONDS = 300.0
_POLL_SECONDS = 0.1
_CALL_SECONDS = 5.0


def promote(
    repository: Path | str,
    version: int,
    label: str,
    address: str | None = None,
    wait_seconds: float = WAIT_SECONDS,
) -> None:
    """Give a version a label.

    Args:
        repository: a path, or an address that TensorFlow reads.
        version: a published one.
        label: `stable` or `canary`.
        address: host:port of a server of the repository, to wait for.
        wait_seconds: for the server, to load each version and to give it the label.

    Raises:
        PipelineError: no such version or label, or the server does not follow.
    """
    if label not in labels.LABELS:
        raise choice("label", label, labels.LABELS)
    store = open_repository(repository)
    with store.changing():
        _check_published(store, version)
        stable = labels.read(store).labels.get("stable")
        before = labels.stable_before(store, stable)
        if label == "stable" and stable not in (None, version):
            if stable in store.versions():
                before = [*before, stable]
            labels.write_history(store, before)
        _move(store, label, version, before, address, wait_seconds)


def rollback(
    repository: Path | str, address: str | None = None, wait_seconds: float = WAIT_SECONDS
) -> int:
    """Give `stable` back to the version that had it before; returns that.

    Raises:
        PipelineError: none that is still there had it, or the server does not follow.
    """
    store = open_repository(repository)
    with store.changing():
        stable = labels.read(store).labels.get("stable")
        history = labels.stable_before(store, stable)
        if not history:
            raise PipelineError(
                f"no version that is in {store.place}/{MODEL_NAME} was stable before: promote one"
            )
        *before, version = history
        _move(store, "stable", version, before, address, wait_seconds)
        labels.write_history(store, before)
        return version


def _move(
    store: Repository,
    label: str,
    version: int,
    before: list[int],
    address: str | None,
    wait_seconds: float,
) -> None:
    """Both steps, or neither.

    Args:
        store: the repository.
        label: to move.
        version: to move it to.
        before: the versions stable before the one that is stable afterwards.
        address: of the server that is to follow.
        wait_seconds: for it, for each version and for the label.
    """
    served = labels.read(store)
    moved = served.labelled(label, version)
    moved = moved.loading(*labels.earlier(before, moved.labels.get("stable"))[-1:])
    if address is None:
        labels.write(store, moved)
        print(f"{label} is version {version} in {store.place}/{CONFIG}; no server was asked")
        return
    try:
        with _Server(address, wait_seconds) as server, _undone(store):
            current = dataclasses.replace(served, labels=server.labels(served))
            needed = {*current.labels.values(), *moved.labels.values()}
            labels.write(store, current.loading(*needed))
            server.wait_for_version(version)
            # Those of labels that the server did not have; one that is broken holds nothing up.
            for other in {*moved.labels.values()} & {*store.versions()} - {version}:
                server.wait_for_version(other, needed=False)
            labels.write(store, moved)
            server.wait_for_label(label, version)
    except TFSError as error:
        raise PipelineError(str(error)) from error
    print(f"{label} is version {version} on {address}")


@contextlib.contextmanager
def _undone(store: Repository) -> Iterator[None]:
    """Put models.config back if the block fails or is interrupted."""
    text = store.read(CONFIG)
    try:
        yield
    except BaseException:
        if text is None:
            store.delete(CONFIG)
        else:
            store.write(CONFIG, text)
        raise


def _check_published(store: Repository, version: int) -> None:
    published = store.versions()
    if not published:
        raise nothing_published(store.place)
    if version not in published:
        raise PipelineError(
            f"no version {version} in {store.place}/{MODEL_NAME}: there are "
            f"{', '.join(map(str, published))}"
        )


class _Server:
    """A server that is to follow models.config."""

    def __init__(self, address: str, wait_seconds: float) -> None:
        self._address = address
        self._wait_seconds = wait_seconds
        self._client = Client(address, MODEL_NAME, timeout=_CALL_SECONDS)
        self._before: dict[int, VersionStatus] = {}

    def __enter__(self) -> "_Server":
        """See that there is a server, and what it has, or could not load, before."""
        with contextlib.suppress(NotFoundError):
            self._before = {status.version: status for status in self._client.status()}
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def labels(self, served: Served) -> dict[str, int]:
        """The labels of models.config that the server would not refuse.

        They stand for what they do on the server. One that it does not know stays as it is in the
        file, which other servers follow too, if its version is there.

        Raises:
            PipelineError: the server has none of the versions; without labels in the file all
                others would lose theirs for one that does not follow it.
        """
        available = {s.version for s in self._before.values() if s.state == "AVAILABLE"}
        found = {label: version for label, version in served.labels.items() if version in available}
        for label in served.labels:
            with contextlib.suppress(InvalidRequestError, NotFoundError):
                found[label] = self._client.metadata(version_label=label).version
        if served.labels and not found and not self._before.keys() & set(served.versions):
            raise PipelineError(
                f"{self._address} has none of the versions that {CONFIG} names: give the address "
                "of a server that follows it"
            )
        return found

    def wait_for_version(self, version: int, needed: bool = True) -> None:
        """Wait until a version is available, but no longer than it can still become so.

        Raises:
            PipelineError: it is `needed` and cannot be loaded; or time is over.
        """

        def look() -> str | None:
            found = {status.version: status for status in self._client.status()}.get(version)
            if found is None:
                return "not asked for"
            if found.state == "AVAILABLE":
                return None
            if found.state == "END" and not needed:
                return None
            seen = f"{found.state} {found.error}".strip()
            if found.state == "END" and found.error and found != self._before.get(version):
                raise PipelineError(f"{self._address} cannot load version {version}: {seen}")
            return seen

        self._wait(look, f"does not have version {version} AVAILABLE")

    def wait_for_label(self, label: str, version: int) -> None:
        """Wait until a label stands for a version; status calls do not know labels."""

        def look() -> str | None:
            answer = self._client.metadata(version_label=label).version
            return None if answer == version else f"it is version {answer}"

        self._wait(look, f"does not have label {label} at version {version}")

    def _wait(self, look: Callable[[], str | None], failure: str) -> None:
        """Look until there is nothing left to wait for."""
        deadline = time.monotonic() + self._wait_seconds
        while True:
            try:
                seen = look()
            except ServerError as error:
                seen = error.details
            if seen is None:
                return
            if time.monotonic() > deadline:
                raise PipelineError(
                    f"{self._address} {failure} after {self._wait_seconds:g} s: {seen} (does it "
                    f"run with --model_config_file and --model_config_file_poll_wait_seconds?)"
                )
            time.sleep(_POLL_SECONDS)
