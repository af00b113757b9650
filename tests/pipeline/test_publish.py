import json
import os
import re
import shutil
import time

import pytest

from pipeline import files, promote, publish
from pipeline.errors import PipelineError
from tests.pipeline import exports


@pytest.fixture
def run(tmp_path):
    return exports.make_run(tmp_path / "run")


def publication(models, version: int) -> dict:
    path = models / "googlenet" / str(version) / "assets.extra" / "publication.json"
    return json.loads(path.read_text())


def manifest_sum(models, version: int) -> str:
    return files.sha256(models / "googlenet" / str(version) / publish.MANIFEST)


def test_versions_count_up_and_hold_what_was_exported(run, tmp_path, capsys):
    exports.validate(run)
    assert [publish.publish(run, tmp_path / "models") for _ in range(2)] == [1, 2]
    second = tmp_path / "models" / "googlenet" / "2"
    assert publish.check(second) == publish.check(run.export)
    assert second.stat().st_mode & 0o777 == run.export.stat().st_mode & 0o777
    assert capsys.readouterr().out.splitlines()[1] == f"published {second}"


def test_a_blessed_export_is_published_with_its_verdict(run, tmp_path):
    exports.validate(run, latency_ms=3.5)
    publish.publish(run, tmp_path, force=True)
    recorded = publication(tmp_path, 1)
    published = time.strptime(recorded.pop("published"), "%Y-%m-%dT%H:%M:%SZ")
    assert abs(time.mktime(published) - time.mktime(time.gmtime())) < 60
    verdict = json.loads(run.validation.read_text())
    assert verdict["latency_ms"] == 3.5
    assert recorded == {"forced": False, "verdict": verdict}


REFUSED = [
    (lambda run: None, "was never validated: run `make validate RUN="),
    (lambda run: run.validation.write_text("{"), "validation.json is broken"),
    (lambda run: run.validation.write_text("[]"), "validation.json is broken"),
    (lambda run: exports.validate(run, manifest_sha256="0" * 64), "is about another export"),
    (lambda run: exports.validate(run, blessed=False), "accuracy 0.1 is below 0.9; too slow"),
    (lambda run: exports.validate(run, blessed="yes"), "no reason given"),
]


@pytest.mark.parametrize(("verdict", "words"), REFUSED)
def test_what_the_gate_refuses_is_published_by_force_alone(run, tmp_path, verdict, words):
    verdict(run)
    models = tmp_path / "models"
    with pytest.raises(PipelineError, match=r"give --force \(FORCE=1\)") as caught:
        publish.publish(run, models)
    assert words in str(caught.value)
    assert not models.exists()
    publish.publish(run, models, force="shown to the team")
    recorded = publication(models, 1)
    assert recorded["forced"] is True
    assert words in recorded["refusal"]
    assert recorded["force_reason"] == "shown to the team"
    publish.publish(run, models, force=True)
    assert "force_reason" not in publication(models, 2)


def test_a_verdict_is_one_beside_the_version_that_is_stable(run, tmp_path):
    exports.validate(run, baseline=None)
    publish.publish(run, tmp_path)
    promote.promote(tmp_path, 1, "stable")
    with pytest.raises(PipelineError, match="with no stable version, and version 1 is stable: val"):
        publish.publish(run, tmp_path)
    exports.validate(run, baseline=1, baseline_sha256=manifest_sum(tmp_path, 1))
    assert publish.publish(run, tmp_path) == 2
    promote.promote(tmp_path, 2, "stable")
    publish.publish(run, tmp_path, force=True)
    words = "compares with version 1, and version 2 is stable"
    assert words in publication(tmp_path, 3)["refusal"]


def test_a_verdict_is_none_beside_another_version_of_the_number(run, tmp_path):
    """The same of an object store."""
    other = exports.make_run(tmp_path / "other-run", precision="int8")
    for kind in ("", "ram:/"):
        one, another = (f"{kind}{tmp_path}/{name}" for name in ("one", "another"))
        for models, made in ((one, run), (another, other)):
            publish.publish(made, models, force=True)
            promote.promote(models, 1, "stable")
        digest = files.sha256(run.export / publish.MANIFEST)
        exports.validate(run, baseline=1, baseline_sha256=digest)
        words = f"compares with another version 1 than the one in {another}: validate the run again"
        with pytest.raises(PipelineError, match=re.escape(words)):
            publish.publish(run, another)
        assert publish.publish(run, one) == 2


def test_a_verdict_that_does_not_say_beside_what_is_one_where_nothing_is_stable(run, tmp_path):
    exports.validate(run, baseline=1)
    assert publish.publish(run, tmp_path) == 1
    promote.promote(tmp_path, 1, "stable")
    with pytest.raises(PipelineError, match="not say which version 1 it compares with: validate"):
        publish.publish(run, tmp_path)


def test_a_copy_of_a_read_only_export_can_be_deleted(run, tmp_path):
    for place in (run.export, *run.export.rglob("*/")):
        place.chmod(0o555)
    publish.publish(run, tmp_path / "models", force=True)
    version = tmp_path / "models" / "googlenet" / "1"
    modes = {place.stat().st_mode & 0o777 for place in (version, *version.rglob("*/"))}
    assert modes == {0o755}


def test_a_copy_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    def full(source, target):
        os.mkdir(target)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(PipelineError, match="No space left on device"):
        publish.publish(run, tmp_path, force=True)
    assert not list((tmp_path / "googlenet").iterdir())


def test_a_missing_export_is_named(run, tmp_path):
    shutil.rmtree(run.export)
    with pytest.raises(PipelineError, match=f"no export at {run.export}"):
        publish.publish(run, tmp_path / "models", force=True)


@pytest.mark.parametrize("harm", ["change", "remove", "add"])
def test_an_export_that_is_not_its_manifests_is_refused(run, tmp_path, harm):
    if harm == "change":
        os.truncate(run.export / "saved_model.pb", 1000)
    elif harm == "remove":
        (run.export / "saved_model.pb").unlink()
    else:
        (run.export / "extra").write_text("")
    name = "extra" if harm == "add" else "saved_model.pb"
    with pytest.raises(PipelineError, match=f"{name} is not as its manifest says"):
        publish.publish(run, tmp_path / "models", force=True)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("text", ["{", "{}", '{"sha256": 3}'])
def test_a_broken_manifest_is_named(run, tmp_path, text):
    (run.export / "assets.extra" / "manifest.json").write_text(text)
    with pytest.raises(PipelineError, match=r"manifest\.json is broken"):
        publish.publish(run, tmp_path / "models", force=True)
