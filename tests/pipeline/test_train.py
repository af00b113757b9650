import csv
import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pipeline import checkpoint, config, evaluate, files, learner, strategy, train
from pipeline import run as runs
from pipeline.errors import PipelineError
from tests.conftest import FEW_STEPS, ROOT, train_once


def history(run: Path) -> list[dict[str, float]]:
    with (run / "history.csv").open() as file:
        return [{name: float(x) for name, x in row.items()} for row in csv.DictReader(file)]


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "train", *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    """Until a checkpoint of that step or a later one is there."""
    until = time.monotonic() + 120
    while not any(written >= step for written in checkpoint.steps(run / "checkpoints")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_few_steps_lower_the_loss(run):
    rows = history(run.path)
    assert len(rows) == run.config.epochs
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_run_is_found_again_with_its_recipe(run, recipe, data):
    again = runs.latest(run.path.parent)
    assert again == run
    assert again.config == recipe
    assert again.class_names == data.class_names
    assert again.train_images == data.train.size


def test_the_precision_is_chosen_once(data, recipe, tmp_path, monkeypatch):
    """A run that goes on with a machine of another kind stays the run it was."""
    automatic = dataclasses.replace(recipe, precision="auto")
    started = strategy.start("one")
    for fast, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(learner, "_has_fast_bfloat16", lambda fast=fast: fast)
        path = tmp_path / precision
        assert (
            train.open_run(path, tmp_path, automatic, data, started).config.precision == precision
        )
        monkeypatch.setattr(learner, "_has_fast_bfloat16", lambda fast=fast: not fast)
        assert (
            train.open_run(path, tmp_path, automatic, data, started).config.precision == precision
        )


def test_saved_weights_are_those_trained(run):
    network = learner.build(run.config, len(run.class_names))
    network.load_weights(str(run.weights))
    fresh = learner.build(run.config, len(run.class_names))
    assert any(
        not np.array_equal(trained, new)
        for trained, new in zip(network.get_weights(), fresh.get_weights(), strict=True)
    )


@pytest.mark.parametrize(
    "signals",
    [(signal.SIGKILL,), pytest.param((signal.SIGTERM,), marks=pytest.mark.slow)],
    ids=["kill", "term"],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(run, image_folder, tmp_path, signals):
    """The session's run is the uninterrupted one, of the same recipe."""
    interrupted = tmp_path / "run"
    flags = [x for name, value in FEW_STEPS.items() for x in (f"--{name.replace('_', '-')}", value)]
    process = start(
        "--dataset", image_folder, "--run", interrupted, "--checkpoint-seconds", 0.2, *flags
    )  # fmt: skip
    wait_for_step(process, interrupted, random.randint(1, 60))
    process.send_signal(signals[0])
    said, errors = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143}[signals[0]]
    assert "Traceback" not in errors
    kept = checkpoint.steps(interrupted / "checkpoints")
    if signals[0] == signal.SIGTERM:
        assert f"stopped after step {kept[-1]}: go on with --run {interrupted}" in said
    assert not (interrupted / "weights.h5").exists()

    resumed = start("--run", interrupted)
    said, errors = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, errors
    assert f"going on after step {kept[-1]}" in said
    rows, expected = history(interrupted), history(run.path)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    assert [row["learning_rate"] for row in rows] == pytest.approx(
        [row["learning_rate"] for row in expected]
    )
    assert rows[-1]["loss"] == pytest.approx(expected[-1]["loss"], abs=0.25)
    assert (interrupted / "weights.h5").exists()
    assert not (interrupted / "checkpoints").exists()


def test_the_same_signal_again_stops_at_once_and_what_nohup_ignores_stays_ignored():
    with train._stop_signals() as received:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)  # right after, as systemd does
        assert received == [signal.SIGTERM, signal.SIGHUP]
        with pytest.raises(SystemExit) as caught:
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.code == 128 + signal.SIGTERM
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with train._stop_signals() as received:
            signal.raise_signal(signal.SIGHUP)
        assert received == []
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_has_ended_is_not_trained_again_and_its_recipe_stays(run, command):
    done = command("pipeline", "train", "--run", run.path)
    assert (done.returncode, done.stdout) == (0, f"run {run.path} is trained already\n")
    other = command("pipeline", "train", "--run", run.path, "--epochs", "7")
    assert other.returncode == 2
    assert f"was started with epochs {run.config.epochs}, not 7" in other.stderr


def test_other_data_under_a_begun_run_is_refused(data, recipe, tmp_path):
    runs.create(tmp_path, recipe, data.class_names, data.train.size + 1, tmp_path / "run")
    with pytest.raises(PipelineError, match=r"training images .* was started with"):
        train.open_run(tmp_path / "run", tmp_path, recipe, data, strategy.start("one"))


def test_pictures_may_grow_during_training(data, image_folder, tmp_path):
    """As in preset `best`: a network for pictures of any size."""
    recipe = config.from_preset(
        "best", dataset=str(image_folder), epochs=2, batch_size=8, early_size=16, precision="fp32"
    )
    trained = train_once(recipe, data, tmp_path)
    assert trained.finished
    assert evaluate.evaluate(trained, data).images == data.test.size


def test_a_seed_may_be_0_where_pictures_are_cropped(data, image_folder, tmp_path):
    recipe = config.from_preset(
        "demo", dataset=str(image_folder), epochs=1, batch_size=8, crop=0.5, seed=0,
        precision="fp32",
    )  # fmt: skip
    assert train_once(recipe, data, tmp_path).finished


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_rate(data, image_folder, tmp_path):
    recipe = config.from_preset(
        "demo", dataset=str(image_folder), epochs=20, batch_size=8, learning_rate=100.0,
        weight_decay=1.0, precision="fp32",  # every step multiplies the filters by -99
    )  # fmt: skip
    for variant in ("paper", "batch_norm"):  # where the loss stays one while weights are none
        recipe = config.Config(**config.to_dict(recipe) | {"variant": variant})
        with pytest.raises(PipelineError, match=r"are (nan|inf) after step \d+ .* rate of \d"):
            train_once(recipe, data, tmp_path / variant)


def test_weights_that_are_no_numbers_are_not_kept(run, tmp_path):
    network = learner.build(run.config, len(run.class_names))
    variable = network.trainable_variables[3]
    variable.assign(tf.fill(variable.shape, np.nan))
    with pytest.raises(PipelineError, match="no numbers after the last step"):
        train._keep(network, dataclasses.replace(run, path=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_signal_while_weights_are_written_loses_nothing(data, recipe, tmp_path, monkeypatch):
    write = files.write

    def signalled(path, writer):
        if path.name == "weights.h5":
            signal.raise_signal(signal.SIGTERM)
        write(path, writer)

    monkeypatch.setattr(files, "write", signalled)
    assert train_once(recipe, data, tmp_path).finished


def test_a_batch_that_replicas_cannot_share_is_refused(data, recipe, tmp_path):
    started = strategy.start("one")
    run = train.open_run(None, tmp_path, recipe, data, started)

    class Three:
        num_replicas_in_sync = 3
        cluster_resolver = None

    with pytest.raises(PipelineError, match="batch_size is 8: choose a multiple of 3"):
        train.train(run, data, Three())


def test_a_full_disk_is_reported_and_training_goes_on(image_folder, tmp_path):
    """A limit on file size is what an ordinary user can set; weights.h5 does not fit either."""
    code = (
        "import pathlib, resource, signal, sys, threading, time\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "def limit(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, 10_000_000))\n"
        "def after_an_epoch():\n"
        "    while not pathlib.Path(sys.argv[1], 'history.csv').exists(): time.sleep(0.01)\n"
        "    limit(50)\n"
        "limit(10_000_000)\n"
        "threading.Thread(target=after_an_epoch, daemon=True).start()\n"
        "from pipeline.__main__ import main\nsys.exit(main(sys.argv[2:]))\n"
    )
    arguments = ("train", "--dataset", image_folder, "--run", tmp_path / "run", "--epochs", 2)
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "run", *map(str, arguments),
         "--checkpoint-seconds", "0"],
        capture_output=True, text=True, timeout=200, cwd=ROOT, check=False,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert "warning: the checkpoint of step 1 could not be written" in done.stdout, done.stderr
    assert "history.csv could not be written" in done.stdout
    assert "epoch 2/2" in done.stdout
    assert done.returncode == 2, done.stderr
    assert "weights.h5 could not be written" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list((tmp_path / "run" / "checkpoints").glob("*")) == []


def test_fine_tuning_starts_from_a_run_and_says_what_it_took(
    run, data, image_folder, tmp_path, capsys
):
    for extra in range(2):  # another class, so another head
        folder = tmp_path / "colours"
        for name in data.class_names:
            (folder / name).mkdir(parents=True, exist_ok=True)
            for path in (image_folder / name).iterdir():
                (folder / name / path.name).write_bytes(path.read_bytes())
        (folder / "other").mkdir(exist_ok=True)
        source = next((image_folder / "red").iterdir())
        (folder / "other" / f"{extra}{source.suffix}").write_bytes(source.read_bytes())
    from pipeline import dataset

    recipe = config.from_preset(
        "demo", dataset=str(folder), init_from=str(run.path), freeze="5b", batch_size=16,
        learning_rate=0.01, precision="fp32",
    )  # fmt: skip
    tuned = train_once(recipe, dataset.load(str(folder)), tmp_path)
    said = capsys.readouterr().out
    assert "layers loaded; left fresh: logits (3 -> 4 classes)" in said
    assert "not trained: the stem and the blocks up to 5b" in said
    before, after = (learner.build(r.config, len(r.class_names)) for r in (run, tuned))
    before.load_weights(str(run.weights))
    after.load_weights(str(tuned.weights))
    for layer in before.layers:
        same = [
            np.array_equal(a, b)
            for a, b in zip(
                layer.get_weights(), after.get_layer(layer.name).get_weights(), strict=True
            )
            if a.shape == b.shape
        ]
        assert all(same) or layer.name == "logits"


def test_a_start_that_is_not_there_is_named(data, image_folder, tmp_path):
    recipe = config.from_preset("demo", dataset=str(image_folder), init_from="/no/such/run")
    with pytest.raises(PipelineError, match="nothing at /no/such/run"):
        train_once(recipe, data, tmp_path)
    assert not list(tmp_path.iterdir())  # the name mended, the same folder is begun anew


def test_a_start_that_does_not_fit_leaves_no_run(run, data, image_folder, tmp_path):
    fields = {"dataset": str(image_folder), "init_from": str(run.path), "variant": "paper"}
    recipe = config.Config(**config.to_dict(run.config) | fields)
    with pytest.raises(PipelineError, match="has variant batch_norm and the network to train pap"):
        train_once(recipe, data, tmp_path)
    recipe = config.from_preset("demo", init_from=str(run.weights))
    with pytest.raises(PipelineError, match=f"name the run's folder, {run.path}"):
        train_once(recipe, data, tmp_path)
    assert not list(tmp_path.iterdir())


def test_tensorboard_gets_scalars_and_pictures(run):
    (events,) = (run.path / "tensorboard").iterdir()
    tags = {
        value.tag
        for record in tf.data.TFRecordDataset(str(events)).as_numpy_iterator()
        for value in tf.compat.v1.Event.FromString(record).summary.value
    }
    assert {"epoch/loss", "epoch/accuracy", "epoch/learning_rate", "training pictures"} <= tags
