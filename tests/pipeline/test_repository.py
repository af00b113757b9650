"""The model repository under several processes at once, and under processes that are killed."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import serving.repository
from pipeline import publish, repository, versions
from pipeline.errors import PipelineError
from pipeline.repository import LocalRepository
from tests.conftest import ROOT
from tests.pipeline import exports

PUBLISH = """
import sys
from pathlib import Path
from pipeline import publish, run
for _ in range(int(sys.argv[3])):
    publish.publish(run.read(Path(sys.argv[1])), sys.argv[2], force=True)
"""
# Stops in the middle of the copy until somebody sends SIGCONT.
STOP = """
import os, signal, sys
sys.addaudithook(lambda event, arguments: event == "shutil.copyfile"
                 and os.kill(os.getpid(), signal.SIGSTOP))
"""


@pytest.fixture
def run(tmp_path):
    return exports.make_run(tmp_path / "run")


def start(code: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT)


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_processes_at_once_get_numbers_of_their_own(run, tmp_path):
    models = tmp_path / "models"
    publishers = [start(PUBLISH, run.path, models, 6) for _ in range(4)]
    assert [publisher.wait(60) for publisher in publishers] == [0] * 4
    assert contents(models / "googlenet") == set(map(str, range(1, 25)))
    for version in range(1, 25):
        publish.check(models / "googlenet" / str(version))


@pytest.mark.parametrize(
    ("kind", "action", "least"),
    [
        *[("local", action, 10) for action in ("publish", "promote", "rollback", "prune")],
        *[("object_store", action, 10) for action in ("publish", "prune")],
    ],
)
def test_a_kill_at_any_step_leaves_nothing_half_done(tmp_path, kind, action, least):
    script = ROOT / "tests" / "pipeline" / "crashes.py"
    done = subprocess.run(
        [sys.executable, script, kind, action, tmp_path],
        capture_output=True, text=True, timeout=100, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= least


def test_a_publisher_that_lives_keeps_its_staging_directory(run, tmp_path):
    base = tmp_path / "models" / "googlenet"
    with start(STOP + PUBLISH, run.path, tmp_path / "models", 1) as stopped:
        deadline = time.monotonic() + 30
        while not list(base.glob(".staging-*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        (staging,) = base.glob(".staging-*")
        with (
            pytest.raises(PipelineError, match=r"another process has been changing .* for 0\.2 s"),
            LocalRepository(tmp_path / "models").changing(wait_seconds=0.2),
        ):
            pass
        assert staging.is_dir()
        while stopped.poll() is None:  # it stops at every file
            stopped.send_signal(signal.SIGCONT)
            time.sleep(0.02)
    assert stopped.returncode == 0
    assert contents(base) == {"1"}


def test_what_a_killed_process_left_is_cleared_away(run, tmp_path):
    publish.publish(run, tmp_path, force=True)
    for name in (".staging-a/version", ".removed-b/1"):
        (tmp_path / "googlenet" / name).mkdir(parents=True)
    (tmp_path / ".partial-c").mkdir()
    publish.publish(run, tmp_path, force=True)
    assert contents(tmp_path / "googlenet") == {"1", "2"}
    assert contents(tmp_path) == {".lock", "googlenet", "run"}


def test_a_directory_without_a_model_is_no_version_but_its_number_is_taken(run, tmp_path):
    (tmp_path / "googlenet" / "7").mkdir(parents=True)
    for name in ("not-a-version", "²"):
        (tmp_path / "googlenet" / name).mkdir()
    assert publish.publish(run, tmp_path, force=True) == 8
    assert LocalRepository(tmp_path).versions() == [8]


def test_where_there_is_nothing_to_change_nothing_is_made(tmp_path):
    with (
        pytest.raises(PipelineError, match=r"no model is published in .*/models/"),
        LocalRepository(tmp_path / "models").changing(),
    ):
        pass
    assert not (tmp_path / "models").exists()


def test_a_copy_that_is_not_the_export_is_refused(run, tmp_path):
    store = LocalRepository(tmp_path / "models")
    store.create()
    sums = publish.check(run.export) | {"saved_model.pb": "0" * 64}
    with pytest.raises(PipelineError, match=r"saved_model\.pb is not as its manifest says"):
        store.add(run.export, sums, {})
    assert not contents(tmp_path / "models" / "googlenet")


def test_places(tmp_path):
    for place in (tmp_path, str(tmp_path), f"file://{tmp_path}"):
        store = repository.open_repository(place)
        assert isinstance(store, LocalRepository)
        assert store.base_path == f"{tmp_path}/googlenet"
        assert repository.local_folder(place) == tmp_path
    assert repository.open_repository("ram://models").base_path == "ram://models/googlenet"
    for place in ("file://models", "file://models/a", "file:///models#1"):
        with pytest.raises(PipelineError, match="write file:///path"):
            repository.open_repository(place)


def test_numbers_are_those_of_a_server():
    assert repository.numbers(["2", "1", "x", "-1", "٣", str(2**63), "0"]) == [0, 1, 2]
    assert repository.numbers(["007", "7", "07", "1"]) == [1, 7]


def test_of_two_directories_of_a_number_the_servers_one_is_the_version(run, tmp_path):
    base = tmp_path / "googlenet"
    for number in (1, 2, 3):
        assert publish.publish(run, tmp_path, force=True) == number
    for name in ("001", "03"):
        shutil.copytree(base / name.lstrip("0"), base / name)
    store = LocalRepository(tmp_path)
    assert store.versions() == [1, 2, 3]
    assert serving.repository._versions_in(base) == {n: base / str(n) for n in (1, 2, 3)}
    assert versions.prune(tmp_path, 1) == [1, 2]
    assert contents(base) == {"001", "03", "3"}
    assert store.versions() == [3]
