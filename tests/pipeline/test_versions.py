import re
import shutil

import pytest

from pipeline import files, promote, publish, versions
from pipeline.errors import PipelineError
from tests.pipeline import exports


@pytest.fixture
def models(tmp_path):
    """Five versions: 1 was stable, 2 is, 4 is canary."""
    run = exports.make_run(tmp_path / "run", precision="int8")
    models = tmp_path / "models"
    for number in range(5):
        if number == 4:
            exports.validate(run)
        publish.publish(run, models, force=True)
    for version, label in ((1, "stable"), (2, "stable"), (4, "canary")):
        promote.promote(models, version, label)
    return models


def test_the_table_says_what_is_known(models):
    (models / "googlenet" / "3" / "assets.extra" / "manifest.json").unlink()
    heads, *rows = (re.split(r"  +", line.strip()) for line in versions.table(models).splitlines())
    assert heads == ["version", "labels", "accuracy", "precision", "verdict", "age"]
    assert [row[0] for row in rows] == ["5", "4", "3", "2", "1"]
    assert rows[0][1:4] == ["0.9130", "int8", "blessed"]
    assert rows[1][1:5] == ["canary", "0.9130", "int8", "forced"]
    assert rows[2][1] == "forced"
    assert re.fullmatch(r"\d+ s", rows[2][2])


def test_the_accuracy_is_the_exports_by_the_latest_that_measured_it(tmp_path):
    models, measured = tmp_path / "models", {"check": "accuracy", "measured": 0.9}
    run = exports.make_run(tmp_path / "run")
    publish.publish(run, models, force=True)
    run = exports.make_run(tmp_path / "int8", precision_check={"accuracy": 0.91})
    publish.publish(run, models, force=True)
    exports.validate(run, checks=[{"check": "files", "measured": 5}, measured])
    publish.publish(run, models)
    exports.validate(run, checks=[measured | {"measured": None}])
    publish.publish(run, models)
    exports.validate(run, checks=[measured], manifest_sha256="0" * 64)
    publish.publish(run, models, force=True)
    rows = versions.table(models).splitlines()[1:]
    assert [row.split()[1] for row in rows] == ["0.9100", "0.9100", "0.9000", "0.9100", "0.9130"]


@pytest.mark.parametrize("record", [[1], {"accuracy": "0.91", "checks": [1]}, 5, {"checks": 5}])
def test_a_record_of_something_else_hides_no_other(models, record):
    folder = models / "googlenet" / "5" / "assets.extra"
    manifest = {"metrics": record, "precision_check": record, "precision": [1]}
    files.write_json(folder / "manifest.json", manifest)
    verdict = record
    if isinstance(record, dict):
        verdict = record | {"manifest_sha256": files.sha256(folder / "manifest.json")}
    publication = {"published": 5, "forced": [], "verdict": verdict}
    files.write_json(folder / "publication.json", publication)
    assert "canary" in versions.table(models)


@pytest.mark.parametrize(
    ("since", "age"),
    [("2020-01-01T00:00:00Z", r"\d{4,} d"), ("2999-01-01T00:00:00Z", "0 s"), ("soon", "")],
)
def test_ages(models, since, age):
    record = models / "googlenet" / "5" / "assets.extra" / "publication.json"
    files.write_json(record, {"published": since, "forced": False})
    assert re.search(
        f"blessed +{age}$" if age else "blessed$", versions.table(models).split("\n")[1]
    )


def test_prune_keeps_the_newest_the_labelled_and_the_way_back(models, capsys):
    assert versions.prune(models, 1) == [3]
    assert "removed 3; kept 1, 2 stable, 4 canary, 5\n" in capsys.readouterr().out
    assert versions.prune(models, 3) == []
    assert promote.rollback(models) == 1
    assert versions.prune(models, 1) == [2]
    assert sorted(path.name for path in (models / "googlenet").iterdir()) == ["1", "4", "5"]


def test_prune_keeps_the_way_back_past_a_version_that_is_gone(models):
    promote.promote(models, 3, "stable")
    shutil.rmtree(models / "googlenet" / "2")
    assert versions.prune(models, 1) == []
    assert promote.rollback(models) == 1


def test_prune_keeps_the_way_back_that_a_hand_written_models_config_does_not_load(models):
    config = models / "models.config"
    config.write_text(config.read_text().replace("versions: 1\n", ""))
    assert "versions: 1\n" not in config.read_text()
    assert versions.prune(models, 1) == [3]
    assert promote.rollback(models) == 1


@pytest.mark.parametrize("keep", [0, -1])
def test_the_newest_version_stays(models, keep):
    with pytest.raises(PipelineError, match=f"--keep is {keep}: at least the newest"):
        versions.prune(models, keep)


def test_where_nothing_is_published_that_is_said(tmp_path):
    with pytest.raises(PipelineError, match="no model is published"):
        versions.table(tmp_path / "none")
    (tmp_path / "googlenet").mkdir()
    with pytest.raises(PipelineError, match="no model is published"):
        versions.prune(tmp_path, 1)
