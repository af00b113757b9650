"""The same on a file system of TensorFlow's without directories to rename: ram://."""

import json
import uuid
from concurrent import futures

import pytest
import tensorflow as tf

from pipeline import labels, promote, publish, versions
from pipeline.errors import PipelineError
from pipeline.object_store import ObjectStore
from tests.pipeline import exports


@pytest.fixture
def run(tmp_path):
    return exports.make_run(tmp_path / "run")


@pytest.fixture
def place() -> str:
    return f"ram://{uuid.uuid4().hex}/models"


def test_publish_promote_roll_back_and_prune(run, place, capsys):
    assert [publish.publish(run, place, force="a trial") for _ in range(4)] == [1, 2, 3, 4]
    store = ObjectStore(place)
    assert store.versions() == [1, 2, 3, 4]
    publication = json.loads(store.read("googlenet/3/assets.extra/publication.json"))
    assert publication["force_reason"] == "a trial"
    promote.promote(place, 1, "stable")
    promote.promote(place, 2, "stable")
    promote.promote(place, 4, "canary")
    assert f'base_path: "{place}/googlenet"' in store.read("models.config")
    assert promote.rollback(place) == 1
    assert labels.read(store).labels == {"stable": 1, "canary": 4}
    assert versions.prune(place, 1) == [2, 3]
    assert store.versions() == [1, 4]
    assert "canary" in versions.table(place)
    assert sorted(tf.io.gfile.listdir(f"{place}/googlenet")) == ["1", "4"]
    assert "published ram://" in capsys.readouterr().out


def test_a_version_comes_back_as_it_was_published(run, place, tmp_path):
    publish.publish(run, place, force=True)
    ObjectStore(place).fetch(1, tmp_path / "version")
    assert publish.check(tmp_path / "version") == publish.check(run.export)


def test_publishers_at_once_get_numbers_of_their_own(run, place):
    with futures.ThreadPoolExecutor(4) as pool:
        published = [pool.submit(publish.publish, run, place, True) for _ in range(12)]
        numbers = sorted(future.result(60) for future in published)
    assert len(set(numbers)) == 12
    assert ObjectStore(place).versions() == numbers


def test_a_version_is_one_once_it_is_complete(run, place):
    publish.publish(run, place, force=True)
    base = f"{place}/googlenet"
    for name in (
        *("2/assets.extra/manifest.json", ".claim-2-1700000000-a"),
        *("3/x", ".claim-3-9999999999-b"),
    ):
        tf.io.gfile.makedirs(f"{base}/{name}".rpartition("/")[0])
        with tf.io.gfile.GFile(f"{base}/{name}", "w") as file:
            file.write("")
    assert ObjectStore(place).versions() == [1]
    assert publish.publish(run, place, force=True) == 4
    # A day-old claim and what it was for are removed; a younger publisher's are not.
    assert sorted(tf.io.gfile.listdir(base)) == [".claim-3-9999999999-b", "1", "3", "4"]


@pytest.mark.parametrize("fails", ["always", "after a claim"])
def test_a_listing_that_fails_is_no_empty_repository(run, place, tmp_path, monkeypatch, fails):
    """`listdir` calls it not found where a store cannot be asked."""
    publish.publish(run, place, force=True)
    store, listdir, listed = ObjectStore(place), tf.io.gfile.listdir, []

    def broken(path):
        listed.append(path)
        if fails == "always":
            raise tf.errors.NotFoundError(None, None, "Could not find directory")
        return [name for name in listdir(path) if not name.startswith(".claim")]

    monkeypatch.setattr(tf.io.gfile, "listdir", broken)
    with pytest.raises(PipelineError, match="/googlenet cannot be listed"):
        publish.publish(run, place, force=True)
    assert listed
    monkeypatch.undo()
    assert store.versions() == [1]
    store.fetch(1, tmp_path / "version")
    assert publish.check(tmp_path / "version") == publish.check(run.export)
    assert listdir(f"{place}/googlenet") == ["1"]


def test_what_cannot_be_fetched_is_said(place, tmp_path):
    with pytest.raises(PipelineError, match="googlenet/1"):
        ObjectStore(place).fetch(1, tmp_path / "version")


def test_a_copy_that_is_not_the_export_is_refused(run, place):
    store = ObjectStore(place)
    store.create()
    sums = publish.check(run.export) | {"saved_model.pb": "0" * 64}
    with pytest.raises(PipelineError, match=r"saved_model\.pb is not as its manifest says"):
        store.add(run.export, sums, {})
    assert tf.io.gfile.listdir(f"{place}/googlenet") == []


@pytest.mark.parametrize("place", ["gs://", "ram://", "gs:///"])
def test_an_address_without_a_bucket_is_refused(run, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError, match=f"repository {place}: name a bucket"):
        publish.publish(run, place, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_file_system_that_tensorflow_does_not_have_is_named(run):
    with pytest.raises(PipelineError, match=r"s3://bucket/models: .*'s3' not implemented"):
        publish.publish(run, "s3://bucket/models", force=True)
