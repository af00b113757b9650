import concurrent.futures
import shutil

import pytest

from pipeline import export, publish
from pipeline.errors import PipelineError


def test_versions_count_up_and_hold_what_was_exported(exported, tmp_path):
    first = publish.publish(exported, tmp_path)
    (tmp_path / "googlenet" / "7").mkdir()
    (tmp_path / "googlenet" / "not-a-version").mkdir()
    (tmp_path / "googlenet" / "²").mkdir()
    second = publish.publish(exported, tmp_path)
    assert (first.name, second.name) == ("1", "8")
    assert dict(export.checksums(second)) == dict(export.checksums(exported))
    publish.check(second)
    assert second.stat().st_mode & 0o777 == exported.stat().st_mode & 0o777


def test_publishers_at_once_get_numbers_of_their_own(exported, tmp_path):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        published = [pool.submit(publish.publish, exported, tmp_path) for _ in range(8)]
        names = sorted(int(future.result().name) for future in published)
    assert names == list(range(1, 9))
    assert publish.versions(tmp_path / "googlenet") == names


def test_a_copy_that_fails_leaves_nothing(exported, tmp_path, monkeypatch):
    def full(source, target):
        shutil.copytree(source, target)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publish.files, "copy_tree", full)
    with pytest.raises(PipelineError, match="No space left on device"):
        publish.publish(exported, tmp_path)
    assert not list((tmp_path / "googlenet").iterdir())


def test_a_missing_export_is_named(tmp_path):
    with pytest.raises(PipelineError, match=f"no export at {tmp_path}/export"):
        publish.publish(tmp_path / "export", tmp_path / "models")


@pytest.mark.parametrize("harm", ["change", "remove", "add"])
def test_an_export_that_is_not_its_manifests_is_refused(exported, tmp_path, harm):
    copy = tmp_path / "export"
    shutil.copytree(exported, copy)
    if harm == "change":
        with (copy / "saved_model.pb").open("r+b") as file:
            file.truncate(1000)
    elif harm == "remove":
        (copy / "saved_model.pb").unlink()
    else:
        (copy / "extra").write_text("")
    name = "extra" if harm == "add" else "saved_model.pb"
    with pytest.raises(PipelineError, match=f"{name} is not as its manifest says"):
        publish.publish(copy, tmp_path / "models")
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").rglob("*.pb"))


@pytest.mark.parametrize("text", ["{", "{}", '{"sha256": 3}'])
def test_a_broken_manifest_is_named(exported, tmp_path, text):
    copy = tmp_path / "export"
    shutil.copytree(exported, copy)
    (copy / "assets.extra" / "manifest.json").write_text(text)
    with pytest.raises(PipelineError, match=r"manifest\.json is broken"):
        publish.publish(copy, tmp_path / "models")
