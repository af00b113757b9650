"""A training's state on the disk: written whole or not at all, the newest two kept.

    runs/…/checkpoints/<step>/      everything training needs to go on after that many steps

The position in the data and in the rate's curve follow from the step, see `feed`. A 60 MB state of
the small network takes a quarter of a second.
"""

import shutil
import tempfile
from pathlib import Path

import tensorflow as tf

from pipeline import files
from pipeline.errors import PipelineError, reason
from pipeline.strategy import WORKER_ERRORS

KEPT = 2  # the last, and the one before in case a disk spoils it


def write(state: tf.train.Checkpoint, folder: Path, step: int) -> None:
    """Write the state after so many steps, then remove all but the newest.

    First what a killed process was writing goes: it takes as much room as a checkpoint.

    Raises:
        PipelineError: it cannot be written (a full disk, say); what was there is left as it was.
        tf.errors.OpError: one of `WORKER_ERRORS`; all workers take part in reading the state.
    """
    taking_part = False

    def save(partial: Path) -> None:
        nonlocal taking_part
        partial.mkdir()
        taking_part = True
        state.write(str(partial / "state"))

    for left in folder.glob(f"{files.PARTIAL}*"):
        shutil.rmtree(left, ignore_errors=True)
    try:
        files.replace_folder(folder / str(step), save)
    except WORKER_ERRORS:
        raise
    except (OSError, tf.errors.OpError) as error:
        if not taking_part:
            take_part(state)
        raise PipelineError(
            f"the checkpoint of step {step} could not be written to {folder} "
            f"({reason(error)}): make room there; {_last(folder)}"
        ) from error
    for old in steps(folder)[:-KEPT]:
        shutil.rmtree(folder / str(old))


def restore(state: tf.train.Checkpoint, folder: Path) -> int:
    """Put the newest checkpoint into the state; returns its step, 0 where there is none.

    Raises:
        PipelineError: it cannot be read, or is that of another network.
    """
    known = steps(folder)
    if not known:
        return 0
    newest = folder / str(known[-1])
    try:
        state.read(str(newest / "state")).assert_consumed()
    except AssertionError as error:
        raise PipelineError(
            f"checkpoint {newest} cannot be read: it is of another network, or of another version "
            "of this program: start another run"
        ) from error
    except (tf.errors.OpError, ValueError, IndexError) as error:  # that one if it was cut short
        raise PipelineError(
            f"checkpoint {newest} cannot be read ({reason(error)}): remove it to go on from the "
            "one before"
        ) from error
    return known[-1]


def discard(folder: Path) -> None:
    """Remove all checkpoints: the training has ended."""
    shutil.rmtree(folder, ignore_errors=True)


def take_part(state: tf.train.Checkpoint) -> None:
    """Read the state and keep nothing: several workers can only read it together.

    Raises:
        tf.errors.OpError: one of `WORKER_ERRORS`.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            state.write(str(Path(folder) / "state"))
    except WORKER_ERRORS:
        raise
    except (OSError, tf.errors.OpError):
        pass  # a disk that is full: when it fails all has been read


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints, in order; what is not finished has another kind of name."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def _last(folder: Path) -> str:
    known = steps(folder)
    return f"that of step {known[-1]} is whole" if known else "there is none before it"
