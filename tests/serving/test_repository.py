import gc
import shutil
import threading
import time
import weakref

import numpy as np
import pytest

from serving.engine import Servable
from serving.errors import Code, ConfigError, ServingError
from serving.models_config import ModelConfig, _Policy
from serving.repository import Polling, Repository, State, follow

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


def test_of_the_old_versions_the_highest_waits_for_a_new_one(repository, add_version, tmp_path):
    add_version(1, 2.0)
    add_version(2, 3.0)
    served = repository(policy=config_of(tmp_path, {}, 1, 2).policy)
    served.start()
    (tmp_path / "affine" / "9").mkdir()
    served.reload([config_of(tmp_path, {}, 9)])
    assert states(served) == {9: State.END, 2: State.AVAILABLE, 1: State.END}
    assert answer(served) == (2, 4)


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


def test_what_cannot_be_loaded_leaves_nothing_in_memory(add_version, tmp_path):
    add_version(1)
    weights = []

    class Weights:
        pass

    def load(name, version, path):
        held = Weights()
        weights.append(weakref.ref(held))
        raise ServingError(Code.INVALID_ARGUMENT, "bad warm-up") from ValueError(str(held))

    config = ModelConfig("affine", tmp_path / "affine")
    served = Repository([config], load, Polling(0, 0), threading.Event())
    with pytest.raises(ConfigError, match="bad warm-up"):
        served.start()
    gc.collect()
    assert [each() for each in weights] == [None]


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


def test_labels_name_versions(repository, add_version, tmp_path):
    add_version(1, 2.0)
    add_version(2, 3.0)
    both = _Policy(all=_Policy.All())
    served = repository(policy=both)
    served.start()
    served.reload([ModelConfig("affine", tmp_path / "affine", both, {"stable": 1})])
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
    with pytest.raises(
        ConfigError, match=r"(?s)\{\{\{name: affine version: 1\} due.*SavedModel.*: remove or"
    ):
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


def test_a_version_that_is_not_there_is_named(repository):
    with pytest.raises(ServingError, match="version 9 of model nope"):
        repository().status("nope", 9)
    with pytest.raises(ServingError, match="any versions of model nope"):
        repository().status("nope")


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


def config_of(tmp_path, labels, *numbers):
    policy = _Policy(specific=_Policy.Specific(versions=numbers))
    return ModelConfig("affine", tmp_path / "affine", policy, labels)


def refused(version):
    return pytest.raises(ServingError, match=f"assign label to version {version} of model affine")


def test_a_label_is_given_to_a_version_that_is_available(repository, add_version, tmp_path):
    add_version(1, 2.0)
    add_version(2, 3.0)
    served = repository()
    served.start()
    with refused(1) as caught:
        served.reload([config_of(tmp_path, {"stable": 1}, 1, 2)])
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert states(served) == {2: State.AVAILABLE}
    served.reload([config_of(tmp_path, {}, 1, 2)])
    served.reload([config_of(tmp_path, {"stable": 1}, 1, 2)])
    assert answer(served, label="stable") == (1, 3)
    with refused(7):
        served.reload([config_of(tmp_path, {"stable": 7}, 2)])
    assert answer(served, label="stable") == (1, 3)
    served.reload([config_of(tmp_path, {"stable": 2}, 2)])
    assert answer(served, label="stable") == (2, 4)
    assert states(served) == {2: State.AVAILABLE, 1: State.END}
    served.reload([config_of(tmp_path, {}, 1)])
    assert states(served) == {1: State.AVAILABLE, 2: State.END}


def test_labels_are_held_to_their_rule_when_nothing_else_changes(repository, add_version, tmp_path):
    add_version(1)
    served = repository()
    served.start()
    served.reload([config_of(tmp_path, {"stable": 1}, 1)])
    shutil.rmtree(tmp_path / "affine" / "1")
    add_version(2)
    served.poll()
    with refused(1):
        served.reload([config_of(tmp_path, {"stable": 1}, 1)])


def test_what_a_caller_has_given_up_is_not_done(add_version, tmp_path):
    add_version(1)
    loading, free = threading.Event(), threading.Event()

    def load(name, version, path):
        if version == 2:
            loading.set()
            assert free.wait(30)
        return Servable(name, version, path)

    config = ModelConfig("affine", tmp_path / "affine")
    served = Repository([config], load, Polling(0, 0), threading.Event())
    served.start()
    add_version(2)
    polling = threading.Thread(target=served.poll)
    polling.start()
    assert loading.wait(30)
    with pytest.raises(ServingError, match="a version is being loaded") as caught:
        served.reload([], time.monotonic() + 0.2)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    free.set()
    polling.join()
    assert answer(served) == (2, 3)


def test_a_path_that_cannot_be_ends_no_thread(add_version, tmp_path):
    add_version(1)
    stop, good = threading.Event(), ModelConfig("affine", tmp_path / "affine")
    served = Repository([good], Servable, Polling(0.05, 0), stop)
    served.start()
    with pytest.raises(ServingError, match="no version yet of bad"):
        served.reload([good, ModelConfig("bad", tmp_path / "a\0b")], time.monotonic() + 0.2)
    add_version(2)
    deadline = time.monotonic() + 30
    while 2 not in states(served) or states(served)[2] is not State.AVAILABLE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stop.set()


def test_a_new_label_may_be_allowed_before_its_version_but_not_a_moved_one(add_version, tmp_path):
    add_version(1)
    add_version(2)
    stop = threading.Event()
    first = config_of(tmp_path, {"stable": 1}, 1)
    with pytest.raises(ConfigError, match=r"version 1 of model affine.*: give --allow_version"):
        Repository([first], Servable, Polling(0, 0), stop).start()
    served = Repository([first], Servable, Polling(0, 0), stop, allow_unavailable=True)
    served.start()
    assert answer(served, label="stable")[0] == 1
    with refused(2):
        served.reload([config_of(tmp_path, {"stable": 2}, 1, 2)])
    served.reload([config_of(tmp_path, {"stable": 1, "canary": 2}, 1, 2)])
    assert answer(served, label="canary")[0] == 2


def test_a_model_that_is_no_longer_configured_ends(repository, add_version, tmp_path):
    add_version(1)
    served = repository()
    served.start()
    with served.servable("affine") as held:
        served.reload([ModelConfig("other", tmp_path / "affine")])
        assert held.predict(X)["y"][0] == 3
    with pytest.raises(ServingError, match=r"Latest\(affine\)"):
        answer(served)
    with served.servable("other") as servable:
        assert servable.version == 1
    assert states(served) == {
        1: State.END
    }  # as TensorFlow Serving's monitor, which forgets nothing
    add_version(2)
    served.reload([ModelConfig("affine", tmp_path / "affine")])
    assert states(served) == {1: State.END, 2: State.AVAILABLE}


def test_a_model_that_was_served_may_be_told_to_serve_nothing(repository, add_version, tmp_path):
    add_version(1)
    served = repository()
    served.start()
    (tmp_path / "empty").mkdir()
    served.reload([ModelConfig("affine", tmp_path / "empty")], time.monotonic() + 30)
    assert states(served) == {1: State.END}


def test_a_version_that_failed_and_comes_back_is_another(repository, add_version, tmp_path):
    add_version(1)
    served = repository()
    served.start()
    broken = tmp_path / "affine" / "2"
    broken.mkdir()
    served.poll()
    assert states(served) == {1: State.AVAILABLE, 2: State.END}
    broken.rmdir()
    served.poll()
    add_version(2)
    served.poll()
    assert states(served) == {1: State.END, 2: State.AVAILABLE}


def test_a_changed_file_is_followed_and_a_broken_one_is_not(repository, add_version, tmp_path):
    add_version(1)
    add_version(2)
    served, stop = repository(), threading.Event()
    served.start()
    file = tmp_path / "models.config"
    entry = f'name: "affine" base_path: "{tmp_path}/affine" model_platform: "tensorflow"'
    file.write_text("model_config_list {")
    follow(served, file, 0.05, stop)
    time.sleep(0.3)
    assert states(served) == {2: State.AVAILABLE}
    policy = "model_version_policy { specific { versions: 1 } }"
    file.write_text(f"model_config_list {{ config {{ {entry} {policy} }} }}")
    deadline = time.monotonic() + 30
    while states(served).get(2) is not State.END and time.monotonic() < deadline:
        time.sleep(0.05)
    assert states(served) == {2: State.END, 1: State.AVAILABLE}
    served.reload([ModelConfig("affine", tmp_path / "affine")])  # a client's word
    while states(served).get(2) is not State.END and time.monotonic() < deadline:
        time.sleep(0.05)
    assert states(served) == {2: State.END, 1: State.AVAILABLE}
    file.write_text("")
    time.sleep(0.3)
    stop.set()
    assert states(served) == {2: State.END, 1: State.AVAILABLE}
