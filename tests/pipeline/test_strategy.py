import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tensorflow as tf

from pipeline import checkpoint, strategy
from pipeline.errors import PipelineError
from pipeline.local_server import free_port
from tests.conftest import ROOT

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process of a cluster, or a single one; none is left behind."""
    processes = []

    def run(*arguments: object, workers: list[str] | None = None, index: int = 0):
        environment = dict(os.environ)
        environment.pop("TF_CONFIG", None)
        if workers:
            task = {"type": "worker", "index": index}
            environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
        process = subprocess.Popen(
            [sys.executable, "-m", *map(str, arguments)],
            env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def addresses(count: int) -> list[str]:
    return [f"localhost:{free_port()}" for _ in range(count)]


def losses(run: Path) -> list[float]:
    with (run / "history.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def wait_for_step(
    step: int, run: Path, processes: list[subprocess.Popen[str]], seconds: float = 120
) -> None:
    """Until there is a checkpoint of that step or a later one; no process may end before."""
    until = time.monotonic() + seconds
    while max(checkpoint.steps(run / "checkpoints"), default=0) < step:
        for process in processes:
            assert process.poll() is None, (process.returncode, process.communicate())
        assert time.monotonic() < until, f"no checkpoint of step {step} appeared"
        time.sleep(0.1)


# The losses agree to these relative differences. A difference in the last bit moves some value
# across a ReLU's corner, which grows with the steps and the learning rate. At 0.02 the loss moves
# by 8e-3 in six steps, and 2e-7 was the most that it differed; at 0.1 it was 1.5e-5 after four, on
# one kind of processor of two. With batch normalisation it grows faster.
@pytest.mark.parametrize(
    ("fields", "tolerances"),
    [
        ({"variant": "paper", "learning_rate": 0.02}, [5e-6] * 6),
        pytest.param(
            {"sync_batch_norm": True, "learning_rate": 0.001},
            [1e-5, 1e-5, 1e-2, 5e-2],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["paper", "batch_norm"],
)
def test_two_workers_with_half_a_batch_follow_one_with_the_whole(
    start, image_folder, tmp_path, fields, tolerances
):
    # A step an epoch, so that history.csv has every step's loss.
    fields |= {"epochs": len(tolerances), "batch_size": 40, "precision": "fp32"}
    fields |= {"dropout": 0.0, "shift": 0.1}
    alone = start("tests.pipeline.worker", image_folder, tmp_path / "one", json.dumps(fields))
    _, errors = alone.communicate(timeout=200)
    assert alone.returncode == 0, errors

    # The second worker sees the run's record alone, so that whatever it wrote would be seen.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").symlink_to(tmp_path / "two" / "run.json")
    both = addresses(2)
    pair = [
        start(
            "tests.pipeline.worker",
            image_folder,
            tmp_path / name,
            json.dumps(fields | {"strategy": "multiworker"}),
            workers=both,
            index=index,
        )
        for index, name in enumerate(("two", "other"))
    ]
    said = [process.communicate(timeout=200) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == len(tolerances)
    for ours, theirs, tolerance in zip(two, one, tolerances, strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance)
    assert one[-1] < one[0]
    assert "trained: accuracy" in said[0][0]
    assert said[1][0] == ""
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["run.json"]
    assert (tmp_path / "two" / "weights.h5").exists()


def test_a_killed_worker_ends_the_other_and_all_go_on_from_the_checkpoint(
    start, image_folder, tmp_path
):
    run = tmp_path / "run"
    train = (
        "pipeline", "train", "--dataset", image_folder, "--strategy", "multiworker", "--run", run,
        "--batch-size", 8, "--precision", "fp32", "--checkpoint-seconds", 2, "--wait-seconds", 60,
    )  # fmt: skip

    def start_both(epochs: int) -> list[subprocess.Popen[str]]:
        workers = addresses(2)  # new ones, since others may have taken those of a pair that ended
        return [
            start(*train, "--epochs", epochs, workers=workers, index=index) for index in range(2)
        ]

    chief, other = start_both(500)
    wait_for_step(1, run, [chief, other])
    other.kill()
    _, errors = chief.communicate(timeout=120)
    assert chief.returncode == 2
    assert "another worker no longer answers" in errors
    assert "Traceback" not in errors

    kept = checkpoint.steps(run / "checkpoints")[-1]
    pair = start_both(500)
    wait_for_step(kept + 1, run, pair)
    pair[1].send_signal(signal.SIGTERM)  # one is asked, both stop at the same step
    said = [process.communicate(timeout=120) for process in pair]
    assert [process.returncode for process in pair] == [143, 143], said
    assert "going on after step" in said[0][0]
    assert "stopped after step" in said[0][0]


def test_a_worker_that_fails_before_the_first_step_ends_the_other(start, image_folder, tmp_path):
    workers = addresses(2)
    chief, other = (
        start(
            "pipeline", "train", "--dataset", folder, "--strategy", "multiworker",
            "--run", tmp_path / "run", "--wait-seconds", 60, workers=workers, index=index,
        )
        for index, folder in enumerate((image_folder, tmp_path / "none"))
    )  # fmt: skip
    for process, words in ((other, "none does not exist"), (chief, "worker no longer answers")):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2, errors
        assert words in errors
        assert "Traceback" not in errors


def test_a_worker_that_never_comes_is_not_waited_for_forever(start, image_folder, tmp_path):
    here, absent = addresses(2)
    alone = start(
        "pipeline", "train", "--dataset", image_folder, "--strategy", "multiworker",
        "--run", tmp_path / "run", "--wait-seconds", 5, workers=[here, absent],
    )  # fmt: skip
    _, errors = alone.communicate(timeout=60)
    assert alone.returncode == 2
    assert f"worker {absent} has not come within 5 s" in errors


def test_several_workers_need_a_folder_that_all_see(start, image_folder):
    alone = start(
        "pipeline", "train", "--dataset", image_folder, "--strategy", "multiworker",
        workers=addresses(1),
    )  # fmt: skip
    _, errors = alone.communicate(timeout=60)
    assert alone.returncode == 2
    assert "strategy multiworker needs --run" in errors


def test_a_missing_tpu_is_said():
    with pytest.raises(PipelineError, match="no TPU"):
        strategy.start("tpu")


@pytest.mark.parametrize(
    "value",
    [
        None,
        "garbage",
        "{}",
        '{"cluster": {"worker": []}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:99999"]}, "task": {"type": "worker", "index": 0}}',
    ],
)
def test_a_cluster_that_is_none_is_said(value, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if value is not None:
        monkeypatch.setenv("TF_CONFIG", value)
    with pytest.raises(PipelineError, match="multiworker cannot start: TF_CONFIG must hold"):
        strategy.start("multiworker")


@pytest.mark.parametrize("name", ["one", "mirrored"])
def test_one_process_is_its_own_chief(name):
    started = strategy.start(name)
    assert isinstance(started, tf.distribute.Strategy)
    assert strategy.is_chief(started)
    strategy.barrier(started)


@pytest.mark.parametrize("name", ["one", "mirrored"])
def test_a_single_cpu_takes_batches_as_they_are(name):
    numbers = tf.data.Dataset.range(3)
    started = strategy.start(name)
    batches = strategy.distribute(started, lambda context: numbers)
    assert started.num_replicas_in_sync == 1
    assert not isinstance(batches, tf.distribute.DistributedIterator)
    assert [int(started.run(lambda x: x + 1, (batch,))) for batch in batches] == [1, 2, 3]


def test_the_wait_limit_ends_what_hangs_and_nothing_else():
    code = (
        "import time\nfrom pipeline.strategy import WaitLimit\n"
        "limit = WaitLimit(2)\n"
        "with limit: pass\n"
        "time.sleep(3.5)\nprint('fine so far', flush=True)\n"
        "with limit: time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=40, cwd=ROOT,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "fine so far\n")
    assert "has not answered for 2 s" in done.stderr
