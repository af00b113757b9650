"""The gate, on real exports behind real servers."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import tensorflow as tf
from tfs_client.bench import servers

from pipeline import export, files, local_server, promote, publish, validate
from pipeline import run as runs
from pipeline.errors import PipelineError
from pipeline.run import Run
from pipeline.verdict import Check, Thresholds, Verdict
from tests.conftest import ROOT

NO_DATA = PipelineError("no images: fetch them")


def make_manifest(folder: Path, **changes: object) -> None:
    """Make an export's manifest agree with its files again."""
    path = folder / "assets.extra" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.unlink()
    manifest |= {"sha256": files.checksums(folder)} | changes
    path.write_text(json.dumps(manifest))


def changed(exported: Path, folder: Path, change: Callable, without: str = "") -> Path:
    """The export with other outputs, or without a signature; a real SavedModel."""
    module = tf.Module()
    module.loaded = tf.saved_model.load(str(exported))

    def around(signature):
        (spec,) = signature.structured_input_signature[1].values()
        return tf.function(lambda x: change(signature(**{spec.name: x})), input_signature=[spec])

    signatures = {name: around(s) for name, s in module.loaded.signatures.items()}
    signatures.pop(without, None)
    tf.saved_model.save(module, str(folder), signatures=signatures)
    if "classify" in signatures:
        updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(folder))
        updater.replace_method_name("classify", export.CLASSIFY_METHOD, tags=["serve"])
        updater.save()
    shutil.copytree(exported / "assets.extra", folder / "assets.extra")
    make_manifest(folder)
    return folder


def slow_and_wrong(outputs):
    """The least probable class first, after some matrix products that nothing can leave out."""
    if "classes" not in outputs:
        return outputs
    matrix = tf.fill([1000, 1000], 1e-9 * tf.cast(tf.size(outputs["scores"]), tf.float32))
    zero = tf.minimum(tf.reduce_sum(tf.abs(tf.tanh(matrix @ matrix) @ matrix)), 0.0)
    return outputs | {
        "classes": tf.reverse(outputs["classes"], [1]),
        "scores": outputs["scores"] + zero,
    }


def in_run(run: Run, folder: Path, exported: Path | None = None) -> Run:
    """The run with a folder, and perhaps an export, of its own."""
    if exported:
        shutil.copytree(exported, folder / "export")
    return dataclasses.replace(run, path=folder)


@pytest.fixture(scope="module")
def bad_repository(exported, tmp_path_factory) -> Path:
    repository = tmp_path_factory.mktemp("bad")
    changed(exported, repository / "googlenet" / "1", slow_and_wrong)
    return repository


@pytest.fixture(scope="module")
def repository(models, tmp_path_factory) -> Path:
    """With the export as version 1, now stable."""
    repository = shutil.copytree(models, tmp_path_factory.mktemp("gate") / "models")
    promote.promote(repository, 1, "stable")
    return repository


def checks_of(found: Verdict) -> dict[str, Check]:
    return {check.check: check for check in found.checks}


def refused(found: Verdict) -> list[str]:
    return [check.check for check in found.checks if not check.passed]


def test_a_good_export_is_blessed_against_the_stable_version(run, exported, repository, command):
    # Two copies of one model on a busy machine: the ratio that is tested is that there is one.
    done = command(
        "pipeline", "validate", "--run", run.path, "--repository", repository, "--latency-ratio", 10
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(run.validation.read_text())
    assert record["blessed"] is True
    assert record["reasons"] == []
    stable = repository / "googlenet" / "1" / publish.MANIFEST
    assert (record["baseline"], record["baseline_sha256"]) == (1, files.sha256(stable))
    assert record["server"] == "python -m serving"
    assert record["manifest_sha256"] == files.sha256(exported / publish.MANIFEST)
    measured = {check["check"]: check["measured"] for check in record["checks"]}
    assert list(measured) == [
        *("files", "server", "signatures", "golden answers"),
        *("accuracy", "accuracy lost", "latency", "memory"),
    ]
    assert measured["accuracy"] == json.loads(run.evaluation.read_text())["accuracy"]
    assert measured["accuracy lost"] == 0
    assert measured["memory"] == pytest.approx(1, abs=0.3)
    assert "blessed" in done.stdout
    assert "REFUSED" not in done.stdout
    for name in measured:
        assert f"\n{name} " in done.stdout


def test_imported_weights_are_judged_on_the_images_that_are_named(
    run, exported, image_folder, tmp_path, command
):
    """Nothing in such a run says what its classes look like."""
    imported = in_run(run, tmp_path / "imported", exported)
    record = json.loads((run.path / runs.RECORD).read_text())
    record["config"]["dataset"] = "googlenet"
    files.write_json(imported.path / runs.RECORD, record)
    imported.weights.touch()

    def judged(dataset: object) -> subprocess.CompletedProcess[str]:
        place = ("--run", imported.path, "--repository", tmp_path)
        return command("pipeline", "validate", *place, "--dataset", dataset)

    done = judged("nope_not_there")
    assert done.returncode == 2
    assert "unknown dataset 'nope_not_there'" in done.stderr
    done = judged(image_folder)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = json.loads(imported.validation.read_text())["checks"]
    (accuracy,) = [check["measured"] for check in checks if check["check"] == "accuracy"]
    assert accuracy == json.loads(run.evaluation.read_text())["accuracy"]


def test_a_slow_and_worse_export_is_refused_for_each(
    run, data, repository, bad_repository, tmp_path
):
    """By a server under another name, which gets TensorFlow Serving's flags."""
    program = tmp_path / "tensorflow_model_server"
    program.write_text(f'#!/bin/sh\n{sys.executable} -m serving "$@"\n')
    program.chmod(0o755)
    bad = in_run(run, tmp_path, bad_repository / "googlenet" / "1")
    found = validate.validate(bad, data, repository, Thresholds(), str(program))
    assert refused(found) == ["accuracy", "accuracy lost", "latency"]
    accuracy, lost, latency = found.reasons
    assert accuracy.endswith(f"of {data.test.size} test images, below the floor")
    assert "stable version 1 " in lost
    assert "measured twice" in latency
    assert checks_of(found)["memory"].measured > 0
    assert json.loads(bad.validation.read_text())["reasons"] == found.reasons


def test_a_signature_that_is_missing_or_different_is_named(run, exported, tmp_path, capsys):
    def renamed(outputs):
        return {("vector" if k == "embedding" else k): v for k, v in outputs.items()}

    changed(exported, tmp_path / "export", renamed, without="classify")
    # Else the server refuses to start, since warm-up asks for what is missing.
    (tmp_path / "export/assets.extra/tf_serving_warmup_requests").unlink(missing_ok=True)
    make_manifest(tmp_path / "export")
    found = validate.validate(in_run(run, tmp_path), NO_DATA, tmp_path, Thresholds())
    assert found.reasons == [
        "signatures: signature classify is missing; signature embed: output embedding is "
        "absent, not float32 [-1, 1024]; signature embed: output vector is float32 [-1, 1024], "
        "not absent"
    ]
    assert "REFUSED  signature classify is missing" in capsys.readouterr().out


def test_a_file_cut_short_is_named_by_the_manifest(run, exported, tmp_path):
    cut = in_run(run, tmp_path, exported)
    os.truncate(cut.export / "saved_model.pb", 1000)
    found = validate.validate(cut, NO_DATA, tmp_path, Thresholds())
    assert refused(found) == ["files"]
    assert f"{cut.export}/saved_model.pb is not as its manifest says" in found.reasons[0]


def test_a_file_cut_short_before_the_manifest_was_made_fails_the_server(
    run, exported, tmp_path, command
):
    runs_folder = tmp_path / "runs"
    cut = in_run(run, runs_folder / "cut", exported)
    for name in ("run.json", "weights.h5"):
        shutil.copy(run.path / name, cut.path)
    os.truncate(cut.export / "saved_model.pb", 1000)
    make_manifest(cut.export)
    done = command("pipeline", "validate", "--runs", runs_folder, "--repository", tmp_path)
    assert done.returncode == 1, done.stderr
    (reason,) = json.loads(cut.validation.read_text())["reasons"]
    assert "server: the server did not start: " in reason
    assert "saved_model.pb" in reason
    assert "Traceback" not in done.stderr


def test_answers_that_are_not_the_exports_are_refused_and_no_data_too(
    run, exported, bad_repository, tmp_path
):
    """A server that serves other bytes than it is told to."""
    command = (
        f"{sys.executable} -m serving --port={{port}} --model_name=googlenet "
        f"--model_base_path={bad_repository}/googlenet"
    )
    own = in_run(run, tmp_path, exported)
    found = validate.validate(own, NO_DATA, tmp_path, Thresholds(), command)
    golden, accuracy = found.reasons
    assert golden.startswith("golden answers: difference: ")
    assert "serving_default served and offline: classes" in golden
    assert accuracy == (
        "accuracy: not measured: no images: fetch them; "
        "name its images with --dataset, or `publish --force` does without"
    )
    assert checks_of(found)["latency"].detail.endswith("; no stable version yet")
    assert found.server == command


def test_a_stable_version_of_other_classes_is_not_compared(run, data, exported, tmp_path):
    other = shutil.copytree(exported, tmp_path / "2")
    make_manifest(other, class_names=["a", "b", "c"])
    subject = validate._Subject(run, run.export, data, other, Thresholds(), None)
    check = validate._against_stable(subject, [0.9, 0.9])
    assert not check.passed
    assert check.detail.startswith("stable version 2 has other classes")


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ("sh -c 'echo no licence; exit 3'", "server: the server did not start: no licence"),
        ("sh -c 'sleep 100'", "server: the server did not start in 2 s: it printed nothing"),
    ],
)
def test_a_server_that_does_not_start_is_a_reason(
    run, exported, tmp_path, monkeypatch, server, words
):
    monkeypatch.setattr(servers, "START_SECONDS", 2.0)
    own = in_run(run, tmp_path, exported)
    begun = time.monotonic()
    found = validate.validate(own, NO_DATA, tmp_path, Thresholds(), server)
    assert found.reasons == [words]
    assert time.monotonic() - begun < 20


def test_a_golden_request_fits_into_one_batch():
    config = local_server.BATCHING_CONFIG.read_text()
    (largest,) = re.findall(r"max_batch_size \{ value: (\d+)", config)
    assert int(largest) >= validate.GOLDEN_IMAGES + 1
    assert int(largest) >= validate.BATCH


def test_a_server_command_that_is_none_is_a_mistake(run, exported, tmp_path):
    own = in_run(run, tmp_path, exported)
    for server in ("no-such-program --flag", "sh 'open", " "):
        with pytest.raises(PipelineError, match="server command"):
            validate.validate(own, NO_DATA, tmp_path, Thresholds(), server)
    assert not own.validation.exists()


def test_a_run_without_an_export_is_a_mistake(run, tmp_path):
    with pytest.raises(PipelineError, match=f"no export at {tmp_path}/export"):
        validate.validate(in_run(run, tmp_path), NO_DATA, tmp_path, Thresholds())


def test_the_stable_version_is_what_models_config_says(repository, tmp_path):
    assert validate._stable(tmp_path, tmp_path / "none") is None
    models = shutil.copytree(repository, tmp_path / "models")
    there = validate._stable(models, tmp_path / "1")
    assert there == tmp_path / "1" / "googlenet" / "1"
    assert publish.check(there) == publish.check(models / "googlenet" / "1")
    shutil.rmtree(models / "googlenet" / "1")
    with pytest.raises(
        PipelineError, match=r"models\.config labels version 1 stable, which is not"
    ):
        validate._stable(models, tmp_path / "2")
    (models / "models.config").write_text("model_config_list {")
    with pytest.raises(PipelineError, match=r"models\.config is not a model server's"):
        validate._stable(models, tmp_path / "3")


def serves(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):  # it has just ended
        return "serving" in process.cmdline()
    return False


def test_a_gate_that_is_told_to_end_leaves_nothing(run, exported, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    folder = shutil.copytree(run.path, tmp_path / "run")
    (folder / "validation.json").unlink(missing_ok=True)
    process = psutil.Popen(
        [sys.executable, "-m", "pipeline", "validate", "--run", str(folder)],
        cwd=ROOT, env=os.environ | {"TMPDIR": str(scratch)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    end = time.monotonic() + 60
    while not (servers := [child for child in process.children() if serves(child)]):
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    assert not [server for server in servers if server.is_running()]
    assert not list(scratch.iterdir())
    assert not (folder / "validation.json").exists()
