import csv
import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline import config, progress, run
from pipeline.errors import PipelineError
from pipeline.metrics import Metrics
from pipeline.progress import Progress

MEANS = {"loss": 0.5, "accuracy": 0.75}


@pytest.fixture
def begun(tmp_path):
    recipe = config.from_preset("demo", epochs=3, batch_size=10)
    return run.create(tmp_path, recipe, ("a", "b"), 20, tmp_path / "run")


def steps(begun, first, last, held_out=None, shown=True) -> Progress:
    """Two steps an epoch."""
    shower = Progress(begun, 2, first, shown)
    for step in range(first + 1, last + 1):
        shower.step(np.zeros((1, 8, 8, 3), np.uint8), 0.1, 0.01)
        if step % 2 == 0:
            shower.epoch(MEANS, 0.01, held_out)
    return shower


def rows(begun) -> list[dict[str, str]]:
    with begun.history.open() as file:
        return list(csv.DictReader(file))


def test_an_epoch_is_a_row_and_a_line_and_the_last_line_sums_up(begun, capsys):
    measured = Metrics(4, 0.875, 0.3, {}, [[2, 0], [1, 1]])
    steps(begun, 0, 6, measured).finish()
    assert [row["step"] for row in rows(begun)] == ["2", "4", "6"]
    assert {row["val_accuracy"] for row in rows(begun)} == {"0.875"}
    first, *_, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"epoch 1/3: loss 0\.5000, accuracy 0\.7500 in training and 0\.8750 held out, "
        r"[\d,]+ images/s, 0 min left",
        first,
    )
    assert re.fullmatch(
        rf"trained: accuracy 0\.7500 in training and 0\.8750 held out, \d+ s, [\d,]+ images/s: "
        rf"{begun.path}",
        last,
    )


@pytest.fixture
def clock(monkeypatch):
    """A second passes whenever somebody asks for the time, and an hour when told to."""
    now = itertools.count(0.0)
    late = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(now) + late[0]))
    return late


@pytest.mark.parametrize("begun_at", [0, 1])
def test_what_a_start_takes_is_no_part_of_the_rate(begun, clock, begun_at):
    steps(begun, 0, 2)
    whole = float(rows(begun)[0]["images_per_second"])
    assert whole == pytest.approx(10)
    again = Progress(begun, 2, begun_at + 2, shown=True)
    clock[0] += 3600
    for _ in range(begun_at + 2, 4):
        again.step(np.zeros((1, 8, 8, 3), np.uint8), 0.1, 0.01)
    again.epoch(MEANS, 0.01, None)
    assert [float(row["images_per_second"]) for row in rows(begun)] == [whole, whole]


def test_rows_after_the_checkpoint_are_forgotten(begun):
    steps(begun, 0, 4)
    again = steps(begun, 3, 6)  # the checkpoint was that of step 3
    assert [row["epoch"] for row in rows(begun)] == ["1", "2", "3"]
    again.finish()


@pytest.mark.parametrize(
    "text", ["epoch;step\n1;2\n", "epoch,step\n1,\n", "epoch,step\n1\n", "x\n1\n"]
)
def test_a_history_that_cannot_be_read_is_named(begun, text):
    begun.history.write_text(text)
    with pytest.raises(PipelineError, match=r"history\.csv is broken"):
        steps(begun, 3, 4)


def test_the_end_is_said_where_the_history_is_gone(begun, capsys):
    steps(begun, 6, 6).finish()
    assert capsys.readouterr().out == f"trained: {begun.path}\n"


def test_a_board_that_cannot_be_written_stops_nothing(begun, capsys):
    (begun.path / "tensorboard").write_text("a file")
    steps(begun, 0, 2).finish()
    assert "tensorboard could not be written" in capsys.readouterr().out
    assert [row["epoch"] for row in rows(begun)] == ["1"]


def test_who_is_not_shown_writes_nothing(begun, capsys):
    before = sorted(begun.path.iterdir())
    progress = steps(begun, 0, 6, shown=False)
    progress.say("something")
    progress.finish()
    assert sorted(begun.path.iterdir()) == before
    assert capsys.readouterr().out == ""
