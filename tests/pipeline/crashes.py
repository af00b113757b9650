"""Kill a change to a repository at each of its steps, and look at what is left.

    python tests/pipeline/crashes.py local|object_store publish|promote|rollback|prune FOLDER

A child process gets SIGKILL before its n-th file-system call, n = 1, 2, … until it lives to the
end. Prints the number of steps.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import shutil

import pytest

from pipeline import labels, promote, publish, repository, versions
from pipeline.errors import PipelineError
from tests.pipeline import exports

WITHOUT_PATH = ("os.remove", "os.rmdir", "os.rename", "fcntl.flock")  # relative to a descriptor


def local_steps(root: Path, at: Callable[[], None]) -> None:
    """Call `at` before every file-system call below a folder."""

    def hook(event: str, arguments: tuple) -> None:
        paths = [x for x in arguments if isinstance(x, str | Path)]
        if event in WITHOUT_PATH or any(str(path).startswith(str(root)) for path in paths):
            at()

    sys.addaudithook(hook)


def object_store_steps(root: Path, at: Callable[[], None]) -> None:
    """Call `at` before and after every tf.io.gfile call."""

    def hook(frame, event: str, argument) -> None:
        del argument
        if event in ("call", "return") and frame.f_code.co_filename.endswith("lib/io/file_io.py"):
            at()

    sys.setprofile(hook)


def lives(root: Path, change: Callable[[], object], step: int, steps) -> bool:
    """Whether a child process that is killed at a step comes to its end before."""
    child = os.fork()
    if child == 0:
        left = step

        def at() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        steps(root, at)
        change()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0, status
    return status == 0


def check_published(place: str | Path, root: Path, run) -> None:
    """What is there is whole; the next publication takes a number of its own and clears away."""
    store = repository.open_repository(place)
    before = store.versions()
    assert before[:5] == [1, 2, 3, 4, 5]
    for version in before:
        publish.check(root / "googlenet" / str(version))
    if isinstance(store, repository.LocalRepository):
        assert {path.name for path in (root / "googlenet").glob("[0-9]*")} == set(map(str, before))
    version = publish.publish(run, place, force=True)
    assert version > before[-1]
    assert store.versions() == [*before, version]
    left = {path.name for path in (root / "googlenet").iterdir()} - set(map(str, store.versions()))
    assert not left, left
    assert not list(root.glob(".partial-*"))


def check_promoted(place: str | Path, root: Path, run) -> None:
    stable = labels.read(repository.open_repository(place)).labels["stable"]
    assert stable in (2, 3)
    assert promote.rollback(place) == {2: 1, 3: 2}[stable]


def check_rolled_back(place: str | Path, root: Path, run) -> None:
    store = repository.open_repository(place)
    stable = labels.read(store).labels["stable"]
    assert stable in (1, 2)
    if stable == 2:
        assert promote.rollback(place) == 1
    with pytest.raises(PipelineError, match="was stable before"):
        promote.rollback(place)


def check_pruned(place: str | Path, root: Path, run) -> None:
    store = repository.open_repository(place)
    assert {1, 2, 5} <= set(store.versions())
    for version in store.versions():
        publish.check(root / "googlenet" / str(version))
    versions.prune(place, 1)
    assert sorted(path.name for path in (root / "googlenet").iterdir()) == ["1", "2", "5"]


def main(kind: str, action: str, folder: Path) -> None:
    os.environ["GIT_DIR"] = "/nowhere"  # no git to start for the run's record
    template, root, run = folder / "template", folder / "work", exports.make_run(folder / "run")
    opened, steps = repository.LocalRepository, local_steps
    if kind == "object_store":
        from pipeline.object_store import ObjectStore

        def opened(place):
            return ObjectStore(f"file://{place}", stale_seconds=-1)

        steps = object_store_steps
    repository.open_repository = publish.open_repository = opened
    promote.open_repository = versions.open_repository = opened
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    for _ in range(5):
        publish.publish(run, template, force=True)
    promote.promote(template, 1, "stable")
    promote.promote(template, 2, "stable")
    change, check = {
        "publish": (lambda: publish.publish(run, root, force=True), check_published),
        "promote": (lambda: promote.promote(root, 3, "stable"), check_promoted),
        "rollback": (lambda: promote.rollback(root), check_rolled_back),
        "prune": (lambda: versions.prune(root, 1), check_pruned),
    }[action]
    done, step = False, 0
    while not done:
        step += 1
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(template, root)
        done = lives(root, change, step, steps)
        check(root, root, run)
    print(step - 1, file=sys.__stdout__)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
