import pytest

from pipeline import config
from pipeline import run as runs
from pipeline.errors import PipelineError


def test_runs_of_one_second_get_folders_of_their_own(tmp_path):
    recipe = config.from_preset("demo", dataset="some/Folder name")
    paths = {runs.create(tmp_path, recipe, ("a", "b")).path for _ in range(3)}
    assert len(paths) == 3
    assert all("demo-Folder-name" in path.name for path in paths)


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(PipelineError, match=f"no run at {tmp_path}/x"):
        runs.load(tmp_path / "x")


def test_an_unfinished_run_is_not_taken(tmp_path):
    run = runs.create(tmp_path, config.from_preset("demo"), ("a", "b"))
    with pytest.raises(PipelineError, match="did not finish"):
        runs.load(run.path)
    with pytest.raises(PipelineError, match="no finished run"):
        runs.latest(tmp_path)


def test_the_commit_is_recorded(run):
    assert run.git_commit == "unknown" or len(run.git_commit.removesuffix("-dirty")) == 40


@pytest.mark.parametrize("text", ["{", "{}", '{"config": {"colour": 1}, "class_names": []}'])
def test_a_broken_record_is_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(PipelineError, match=r"run\.json is not a run's record"):
        runs.load(tmp_path)
