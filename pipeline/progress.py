"""A training while it runs: a bar, a line per epoch, `history.csv`, and TensorBoard's files.

tensorboard --logdir runs/          shows the curves and pictures of all runs
"""

import csv
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf
from tqdm import tqdm

from pipeline import files, pictures
from pipeline.errors import PipelineError, reason
from pipeline.metrics import Metrics
from pipeline.run import Run

SCALARS_EVERY = 50  # steps
PICTURES = 16


class Progress:
    """Shows and records the steps of a training; does nothing where not `shown`.

    Args:
        run: where it is recorded.
        steps_per_epoch: of as many epochs as the run's recipe says.
        step: how many steps are done; rows of later ones in `history.csv` are forgotten.
        shown: whether this process is the one that prints and writes.
    """

    def __init__(self, run: Run, steps_per_epoch: int, step: int, shown: bool) -> None:
        self._run = run
        self._steps_per_epoch = steps_per_epoch
        self._step = step
        self._shown = shown
        batch = run.config.batch_size
        self._bar = tqdm(
            desc="training",
            total=run.config.epochs * steps_per_epoch * batch,
            initial=step * batch,
            unit=" images",
            disable=None if shown else True,
        )
        self._board = tf.summary.create_noop_writer()
        if shown:
            with self._writing("tensorboard"):
                self._board = tf.summary.create_file_writer(str(run.path / "tensorboard"))
        self._rows = _rows_until(run.history, step) if shown else []
        # Of the part of an epoch that this process has seen, without its first step: that compiles.
        self._first_step, self._started, self._ended = step, time.monotonic(), time.monotonic()
        self._begun_at = step

    def say(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        if self._shown:
            self._bar.write(text)

    def step(self, pixels: tf.Tensor, loss: float, learning_rate: float) -> None:
        """One more step is done, on pictures uint8 [B,S,S,3] or a replica's each."""
        self._step += 1
        self._ended = time.monotonic()
        if self._step == self._begun_at + 1 and self._step % self._steps_per_epoch:
            self._first_step, self._started = self._step, self._ended
        if self._step == 1:
            with self._writing("tensorboard"), self._board.as_default(1):
                shown = getattr(pixels, "values", (pixels,))[0]
                tf.summary.image("training pictures", shown, max_outputs=PICTURES)
        self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self._bar.update(self._run.config.batch_size)
        if self._step % SCALARS_EVERY == 0:
            with self._writing("tensorboard"), self._board.as_default(self._step):
                tf.summary.scalar("step/loss", loss)
                tf.summary.scalar("step/learning rate", learning_rate)

    def epoch(
        self, means: dict[str, float], learning_rate: float, held_out: Metrics | None
    ) -> None:
        """An epoch is done; `held_out` is what was measured after it."""
        images = (self._step - self._first_step) * self._run.config.batch_size
        rate = images / (self._ended - self._started)
        if self._rows and self._step == self._begun_at + 1:
            rate = self._rows[-1]["images_per_second"]
        row: dict[str, float] = {
            "epoch": self._step // self._steps_per_epoch,
            "step": self._step,
            **means,
            "learning_rate": learning_rate,
            "images_per_second": rate,
        }
        if held_out:
            row |= {"val_loss": held_out.loss, "val_accuracy": held_out.accuracy}
        self._first_step, self._started = self._step, time.monotonic()
        if self._shown:
            self._record(row, held_out)

    def finish(self) -> None:
        """Training is over: say what came of it."""
        self._bar.close()
        with self._writing("tensorboard"):
            self._board.close()
        if not self._shown:
            return
        if not self._rows:  # history.csv is gone, and no epoch was left to train
            print(f"trained: {self._run.path}", flush=True)
            return
        row = self._rows[-1]
        images = self._steps_per_epoch * self._run.config.batch_size
        seconds = sum(images / row["images_per_second"] for row in self._rows)
        rate = images * len(self._rows) / seconds
        print(
            f"trained: accuracy {_accuracy(row)}, {seconds:.0f} s, {rate:,.0f} images/s: "
            f"{self._run.path}",
            flush=True,
        )

    def _record(self, row: dict[str, float], held_out: Metrics | None) -> None:
        self._rows.append(row)
        with self._writing("history.csv"):
            files.write(self._run.history, lambda partial: _write_rows(partial, self._rows))
        with self._writing("tensorboard"), self._board.as_default(self._step):
            for name, value in row.items():
                tf.summary.scalar(f"epoch/{name}", value)
            if held_out:
                picture = pictures.confusion(held_out.confusion, self._run.class_names)
                decoded = tf.io.decode_png(picture, channels=3)[tf.newaxis]
                tf.summary.image("held-out confusion", decoded)
            self._board.flush()
        epochs = self._run.config.epochs
        left = (epochs * self._steps_per_epoch - self._step) * self._run.config.batch_size
        self.say(
            f"epoch {row['epoch']:.0f}/{epochs}: loss {row['loss']:.4f}, "
            f"accuracy {_accuracy(row)}, {row['images_per_second']:,.0f} images/s, "
            f"{left / row['images_per_second'] / 60:.0f} min left"
        )

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """A disk that is full now may have room later, so training goes on."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            path = self._run.path / name
            self.say(f"warning: {path} could not be written ({reason(error)}): make room there")


def _accuracy(row: dict[str, float]) -> str:
    if "val_accuracy" in row:
        return f"{row['accuracy']:.4f} in training and {row['val_accuracy']:.4f} held out"
    return f"{row['accuracy']:.4f} in training"


def _rows_until(history: Path, step: int) -> list[dict[str, float]]:
    if not history.exists():
        return []
    try:
        with history.open() as file:
            rows = [
                {name: int(text) if text.isdecimal() else float(text) for name, text in row.items()}
                for row in csv.DictReader(file)
            ]
        return [row for row in rows if row["step"] <= step]
    except (ValueError, KeyError, AttributeError) as error:
        raise PipelineError(f"{history} is broken ({error}): mend or remove it") from error


def _write_rows(path: Path, rows: list[dict[str, float]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[-1])
        writer.writeheader()
        writer.writerows(rows)
