"""The command line: what a mistake gets is one line and exit code 2."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--preset", "nope"], "unknown preset 'nope': choose from best, demo"),
        (["train", "--dataset", "nope_not_there"], "unknown dataset 'nope_not_there'"),
        (["train", "--dataset", "/no/such/folder"], "/no/such/folder does not exist"),
        (["train", "--epochs", "0"], "epochs is 0"),
        (["train", "--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["train", "--strategy", "magic"], "unknown strategy 'magic'"),
        (["train", "--run", "/no/run"], "no run at /no/run: mend its name"),
        (["train", "--run", "/usr", "--preset", "demo"], "/usr holds something else than a run"),
        (["evaluate", "--run", "/no/run"], "no run at /no/run"),
        (["export", "--run", "/no/run"], "no run at /no/run"),
        (["validate", "--run", "/no/run"], "no run at /no/run"),
        (["publish", "--runs", "/no/runs"], "no finished run in /no/runs"),
        (["promote", "3", "--label", "best"], "unknown label 'best': choose from canary, stable"),
        (["promote", "3", "--wait-seconds", "nan"], "invalid seconds value: 'nan'"),
        (["promote", "three", "--label", "stable"], "VERSION: invalid int value: 'three'"),
        (["rollback", "--repository", "/no/models"], "no model is published in /no/models/"),
        (["versions", "--repository", "/no/models"], "no model is published in /no/models/"),
        (["prune", "--keep", "0"], "--keep is 0"),
        (["benchmark", "--data-dir", "/no/data"], "no images in /no/data/samples/fashion_mnist"),
        (["benchmark", "--repository", "gs://b"], "repository gs://b: the embedded server reads"),
        (["tune", "--repository", "gs://b"], "repository gs://b: the embedded server reads"),
        (["demo", "--repository", "gs://b"], "repository gs://b: the embedded server reads"),
        (["import-weights"], "no weights are named"),
        (["import-weights", "--weights", "w.pth", "--classes", sys.executable], "is not in UTF-8"),
        (["benchmark-server", "--precision", "int4"], "unknown precision 'int4': choose from bf16"),
        (["benchmark-training", "--rounds", "0"], "0 rounds of 6 seconds measure nothing"),
        (["nope"], "invalid choice: 'nope'"),
        ([], "required: STAGE"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(command, arguments, words):
    done = command("pipeline", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_help_names_every_stage(command):
    done = command("pipeline", "--help")
    assert done.returncode == 0
    for stage in ("train", "export", "validate", "publish", "promote", "rollback", "prune", "demo"):
        assert f"    {stage}" in done.stdout


def test_help_does_not_wait_for_tensorflow():
    code = "import sys, pipeline.__main__; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
