import shutil
import threading
import time

import numpy as np
import pytest

from serving.engine import Servable
from serving.errors import Code, ConfigError, ServingError
from serving.models_config import ModelConfig
from serving.repository import Polling, Repository, State

X = {"x": np.array([1], np.float32)}


def states(repository) -> dict[int, State]:
    return {version.number: version.state for version in repository.status("affine")}


def answer(repository, **which) -> tuple[int, float]:
    with repository.servable("affine", **which) as servable:
        return servable.version, servable.predict(X)["y"][0]


def test_the_latest_version_is_served_and_a_newer_takes_its_place(repository, add_version):
    add_version(1, 2.0)
    add_version(2, 3.0)
    served = repository()
    served.start()
    assert states(served) == {2: State.AVAILABLE}
    assert answer(served) == (2, 4)
    add_version(10, 4.0)
    served.poll()
    assert states(served) == {10: State.AVAILABLE, 2: State.END}
    assert answer(served) == (10, 5)


def test_going_back_is_removing_the_newer(repository, add_version, tmp_path):
    add_version(1, 2.0)
    add_version(2, 3.0)
    served = repository()
    served.start()
    shutil.rmtree(tmp_path / "affine" / "2")
    served.poll()
    assert states(served) == {2: State.END, 1: State.AVAILABLE}
    assert answer(served) == (1, 3)


def test_a_broken_version_does_not_replace_a_good_one(repository, add_version, tmp_path):
    add_version(1, 2.0)
    served = repository()
    served.start()
    (tmp_path / "affine" / "2").mkdir()
    (tmp_path / "affine" / "2" / "saved_model.pb").write_bytes(b"\xff\xff")
    served.poll()
    assert states(served) == {2: State.END, 1: State.AVAILABLE}
    (failed,) = served.status("affine", 2)
    assert "Can't parse" in failed.error.message
    assert answer(served) == (1, 3)


def test_a_failed_version_is_tried_again(repository, add_version, tmp_path):
    add_version(1)
    served = repository(Polling(seconds=0, load_retries=1, retry_seconds=0))
    served.start()
    partial = tmp_path / "affine" / "2"
    partial.mkdir()
    served.poll()
    assert states(served) == {2: State.END, 1: State.AVAILABLE}
    shutil.copytree(tmp_path / "affine" / "1", partial, dirs_exist_ok=True)
    served.poll()
    assert states(served) == {2: State.AVAILABLE, 1: State.END}


def test_tries_end(repository, add_version, tmp_path):
    add_version(1)
    loads = []

    def load(name, version, path):
        loads.append(version)
        return Servable(name, version, path)

    config = ModelConfig("affine", tmp_path / "affine")
    served = Repository([config], load, Polling(0, 2, 0), threading.Event())
    served.start()
    (tmp_path / "affine" / "2").mkdir()
    for _ in range(6):
        served.poll()
    assert loads.count(2) == 3


def test_a_version_in_use_is_unloaded_after_its_last_request(repository, add_version):
    add_version(1, 2.0)
    served = repository()
    served.start()
    with served.servable("affine") as old:
        add_version(2, 3.0)
        served.poll()
        assert states(served) == {2: State.AVAILABLE, 1: State.UNLOADING}
        assert old.predict(X)["y"][0] == 3
        with pytest.raises(ServingError, match=r"Specific\(affine, 1\)"):
            answer(served, version=1)
    assert states(served) == {2: State.AVAILABLE, 1: State.END}


def test_removing_all_versions_unloads_but_removing_the_base_path_does_not(
    repository, add_version, tmp_path
):
    add_version(1)
    served = repository()
    served.start()
    (tmp_path / "affine").rename(tmp_path / "elsewhere")
    served.poll()
    assert states(served) == {1: State.AVAILABLE}
    (tmp_path / "affine").mkdir()
    served.poll()
    assert states(served) == {1: State.END}
    with pytest.raises(ServingError, match=r"Latest\(affine\)") as caught:
        answer(served)
    assert caught.value.code is Code.NOT_FOUND


def test_labels_name_versions(repository, add_version):
    from serving.models_config import _Policy

    add_version(1, 2.0)
    add_version(2, 3.0)
    both = _Policy(all=_Policy.All())
    served = repository(policy=both, labels={"stable": 1})
    served.start()
    assert answer(served, label="stable") == (1, 3)
    assert answer(served) == (2, 4)
    with pytest.raises(ServingError, match="Unrecognized servable version label: canary") as caught:
        answer(served, label="canary")
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_what_is_not_served_is_not_found(repository, add_version):
    add_version(1)
    served = repository()
    served.start()
    for call, words in (
        (lambda: answer(served, version=9), r"Specific\(affine, 9\)"),
        (lambda: served.status("nope"), "any versions of model nope"),
        (lambda: served.status("affine", 9), "version 9 of model affine"),
    ):
        with pytest.raises(ServingError, match=words) as caught:
            call()
        assert caught.value.code is Code.NOT_FOUND


def test_a_start_with_nothing_but_a_broken_version_fails(repository, tmp_path):
    (tmp_path / "affine" / "1").mkdir(parents=True)
    with pytest.raises(ConfigError, match="affine version 1 cannot be loaded: Could not find"):
        repository().start()


def test_a_start_waits_for_a_first_version_and_watches_from_then(add_version, tmp_path):
    stop = threading.Event()
    config = ModelConfig("affine", tmp_path / "affine")
    served = Repository([config], Servable, Polling(seconds=0.05), stop)
    starting = threading.Thread(target=served.start)
    starting.start()
    starting.join(0.3)
    assert starting.is_alive()
    add_version(1, 2.0)
    starting.join(30)
    assert not starting.is_alive()
    add_version(2, 3.0)
    deadline = time.monotonic() + 30
    while states(served).get(2) is not State.AVAILABLE and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    assert answer(served) == (2, 4)


def test_directories_are_versions_by_their_number(repository, add_version, tmp_path):
    add_version(3, 2.0).rename(tmp_path / "affine" / "00000003")
    for name in ("99999999999999999999", "²", "-1", "1.5", "x"):
        (tmp_path / "affine" / name).mkdir()
    served = repository()
    served.start()
    assert states(served) == {3: State.AVAILABLE}
    assert answer(served) == (3, 3)


def test_a_base_path_that_cannot_be_read_is_waited_for(repository, add_version, tmp_path):
    add_version(1)
    served = repository()
    served.start()
    (tmp_path / "affine").rename(tmp_path / "elsewhere")
    (tmp_path / "affine").symlink_to(tmp_path / "affine")
    served.poll()
    assert states(served) == {1: State.AVAILABLE}
