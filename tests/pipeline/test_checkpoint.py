import subprocess
import sys

import pytest
import tensorflow as tf

from pipeline import checkpoint
from pipeline.errors import PipelineError
from tests.conftest import ROOT


def state(value: float, size: int = 10) -> tf.train.Checkpoint:
    return tf.train.Checkpoint(x=tf.Variable(tf.fill((size,), value)))


def test_the_newest_is_restored_and_two_are_kept(tmp_path):
    for step in (9, 10, 100):
        checkpoint.write(state(float(step)), tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "100"]
    restored = state(0.0)
    assert checkpoint.restore(restored, tmp_path) == 100
    assert (restored.x.numpy() == 100).all()


def test_nothing_is_step_zero(tmp_path):
    assert checkpoint.restore(state(1.0), tmp_path / "none") == 0


def test_a_half_written_one_is_not_picked_up(tmp_path):
    checkpoint.write(state(5.0), tmp_path, 5)
    partial = tmp_path / ".partial-abc" / "6"
    partial.mkdir(parents=True)
    (partial / "state.index").write_bytes(b"half")
    restored = state(0.0)
    assert checkpoint.restore(restored, tmp_path) == 5


def test_a_state_that_cannot_be_written_is_read_all_the_same(tmp_path):
    """Other workers wait until all have read it."""
    reads = []

    class Read(tf.train.experimental.PythonState):
        def serialize(self) -> str:
            reads.append("once")
            return ""

        def deserialize(self, _: str) -> None:
            pass

    (tmp_path / "checkpoints").write_text("in the way of the folder")
    with pytest.raises(PipelineError, match="step 3 could not be written"):
        checkpoint.write(tf.train.Checkpoint(x=Read()), tmp_path / "checkpoints", 3)
    assert reads == ["once"]


@pytest.mark.parametrize("name", ["state.index", "state.data-00000-of-00001"])
def test_a_spoiled_one_is_named(tmp_path, name):
    checkpoint.write(state(5.0), tmp_path, 5)
    spoiled = tmp_path / "5" / name
    spoiled.write_bytes(spoiled.read_bytes()[: 20 if name.endswith("index") else 1])
    with pytest.raises(PipelineError, match=r"checkpoint .*/5 cannot be read .*remove it"):
        checkpoint.restore(state(0.0), tmp_path)


def test_what_a_killed_process_was_writing_is_cleared_away(tmp_path):
    (tmp_path / ".partial-x" / "6").mkdir(parents=True)
    checkpoint.write(state(5.0), tmp_path, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["5"]


def test_one_of_another_network_is_named(tmp_path):
    checkpoint.write(state(5.0), tmp_path, 5)
    with pytest.raises(PipelineError, match=r"checkpoint .*/5 cannot be read"):
        checkpoint.restore(state(0.0, size=11), tmp_path)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import tensorflow as tf
from pipeline import checkpoint
from pipeline.errors import PipelineError
folder = Path(sys.argv[1])
state = tf.train.Checkpoint(x=tf.Variable(tf.ones(100_000)))
checkpoint.write(state, folder, 1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # the system takes no more
try:
    checkpoint.write(state, folder, 2)
except PipelineError as error:
    print(error)
"""


def test_a_disk_that_takes_no_more_is_said_and_the_last_one_stays(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True, text=True, timeout=120, cwd=ROOT, check=False,
    )  # fmt: skip
    assert "checkpoint of step 2 could not be written" in done.stdout, done.stderr
    assert "that of step 1 is whole" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    restored = state(0.0, 100_000)
    assert checkpoint.restore(restored, tmp_path) == 1
    assert (restored.x.numpy() == 1).all()
