"""Train the network through a tf.distribute strategy.

    python -m pipeline train --preset demo [--dataset NAME_OR_FOLDER] [--strategy mirrored]
    python -m pipeline train --run runs/…           goes on with a run that was interrupted

prints a progress bar and a line per epoch, and leaves a run folder, see `run`. The preset `demo`
takes two minutes on two cores; docs/training.md says what the others take.

A checkpoint is written every few minutes, and on SIGTERM, SIGHUP and Ctrl-C before the process
exits with 128 + the signal's number.
"""

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras as keras

from pipeline import checkpoint, dataset, feed, files, weights
from pipeline import run as runs
from pipeline.config import Config
from pipeline.dataset import Dataset
from pipeline.errors import PipelineError, reason
from pipeline.feed import Feed
from pipeline.learner import Batch, Learner, choose_precision
from pipeline.progress import Progress
from pipeline.run import Run
from pipeline.strategy import WAIT_SECONDS, WaitLimit, barrier, distribute, is_chief

CHECKPOINT_SECONDS = 300.0


def open_run(
    path: Path | None,
    root: Path,
    recipe: Config,
    data: Dataset,
    strategy: tf.distribute.Strategy,
    wait_seconds: float = WAIT_SECONDS,
) -> Run:
    """The run at a path, to go on with; or a new one, there or below `root`.

    Raises:
        PipelineError: the data is no longer what the run was started with, the weights that a new
            one is to start from do not fit, another worker is gone, or one does not see the
            chief's folder.
    """
    if not path and recipe.strategy == "multiworker":
        raise PipelineError("strategy multiworker needs --run: a folder that all workers share")
    images = data.train.size
    begun = path if path and (path / runs.RECORD).exists() else None
    if recipe.init_from and not begun:
        weights.check(Path(recipe.init_from), recipe)
    if begun:
        run = runs.read(begun)
    elif is_chief(strategy):
        # Once for all workers, and for a machine of another kind that goes on with it.
        recipe = replace(recipe, precision=choose_precision(recipe.precision))
        run = runs.create(root, recipe, data.class_names, images, path)
    with _named_errors(recipe, path), _waiting(recipe, wait_seconds):
        barrier(strategy)
    if path and not is_chief(strategy):
        run = runs.read(path)
    if (run.class_names, run.train_images) != (data.class_names, images):
        raise PipelineError(
            f"dataset {data.name} has {images} training images of {len(data.class_names)} classes, "
            f"and run {run.path} was started with {run.train_images} of {len(run.class_names)}, or "
            "the classes' names differ: bring the data back, or start another run"
        )
    return run


def train(
    run: Run,
    data: Dataset,
    strategy: tf.distribute.Strategy,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    wait_seconds: float = WAIT_SECONDS,
) -> None:
    """Train a run's network by its recipe, from its newest checkpoint if it has one.

    Args:
        run: an unfinished run; its weights are there when this returns.
        data: what it learns from.
        strategy: see `strategy.start`; with several workers, every one of them calls this.
        checkpoint_seconds: time between checkpoints.
        wait_seconds: longest wait for another worker.

    Raises:
        PipelineError: the loss is no longer a number, another worker is gone, the weights to start
            from do not fit.
        SystemExit: a signal asked to stop; a checkpoint has been written.
    """
    recipe, chief = run.config, is_chief(strategy)
    _check_batch_size(recipe.batch_size, strategy.num_replicas_in_sync)
    # Not 0, beside which TensorFlow cannot shuffle by a seed that is a tensor.
    keras.utils.set_random_seed(recipe.seed or 2**31)
    training, held_out = dataset.hold_out(data.train, recipe.holdout)
    waiting = _waiting(recipe, wait_seconds)
    with _named_errors(recipe, run.path):
        source = feed.feed(training, recipe)
        init_from = "" if checkpoint.steps(run.checkpoints) else recipe.init_from
        with waiting:
            learner = Learner(recipe, data.class_names, source.steps_per_epoch, strategy, init_from)
        done = checkpoint.restore(learner.state, run.checkpoints)
    progress = Progress(run, source.steps_per_epoch, done, shown=chief)
    for line in _opening(source, learner, done, len(data.class_names), strategy):
        progress.say(line)
    with _stop_signals() as stop, _named_errors(recipe, run.path):
        batches = _batches(strategy, source, done, waiting)
        due = time.monotonic() + checkpoint_seconds
        for step in range(done + 1, source.steps_per_epoch * recipe.epochs + 1):
            batch = next(batches)
            flags = [bool(stop), chief and time.monotonic() > due]
            with waiting:
                loss, (stopping, saving) = learner.learn(batch, flags)
            rate = learner.learning_rate(step - 1)
            _check_loss(loss, step, rate)
            progress.step(batch[0], loss, rate)
            if step % source.steps_per_epoch == 0:
                measured = learner.measure(held_out, waiting) if held_out.size else None
                if measured:
                    _check_loss(measured.loss, step, rate)
                progress.epoch(learner.take_means(), rate, measured)
            if stopping or saving:
                with waiting:
                    _save(learner, run, step, progress if chief else None)
                due = time.monotonic() + checkpoint_seconds
            if stopping:
                progress.say(f"stopped after step {step:,}: go on with --run {run.path}")
                sys.exit(128 + (stop[0] if stop else signal.SIGTERM))
        with waiting:
            network = learner.finished()
        if chief:  # while signals wait: there may be no checkpoint of the last step
            _keep(network, run)
            checkpoint.discard(run.checkpoints)
    progress.finish()


def _check_batch_size(batch_size: int, replicas: int) -> None:
    if batch_size % replicas:
        raise PipelineError(
            f"batch_size is {batch_size}: choose a multiple of {replicas}, the number of replicas "
            "that share it"
        )


def _waiting(recipe: Config, seconds: float) -> AbstractContextManager[None]:
    """Around all that waits for other workers."""
    return WaitLimit(seconds) if recipe.strategy == "multiworker" else nullcontext()


def _check_loss(loss: float, step: int, rate: float) -> None:
    if not math.isfinite(loss):
        raise PipelineError(
            f"the loss or its gradients are {loss} after step {step} at a learning rate of "
            f"{rate:.3g}: train with a lower --learning-rate"
        )


def _opening(
    source: Feed, learner: Learner, done: int, classes: int, strategy: tf.distribute.Strategy
) -> Iterator[str]:
    """What is trained on what, and from where on."""
    recipe = source.recipe
    yield (
        f"training GoogLeNet ({recipe.variant}, {recipe.image_size}×{recipe.image_size}) on "
        f"{source.split.size:,} images of {classes} classes: {recipe.epochs} epochs of "
        f"{source.steps_per_epoch} steps, {learner.dtype}, {type(strategy).__name__}"
    )
    if done:
        yield f"going on after step {done:,}"
    elif learner.initialized:
        yield str(learner.initialized)
    if recipe.freeze:
        yield f"not trained: the stem and the blocks up to {recipe.freeze}"


def _batches(
    strategy: tf.distribute.Strategy,
    source: Feed,
    step: int,
    waiting: AbstractContextManager[None],
) -> Iterator[Batch]:
    """Every step's batch, of smaller pictures first where the recipe wants that.

    Workers wait for each other's, within `waiting`; but for the first, before which a worker may
    have an epoch to pass over. TensorFlow's iterators stay until this is closed: to delete one may
    take longer than another worker waits.
    """
    recipe, alive = source.recipe, []
    early = round(recipe.early_share * recipe.epochs) * source.steps_per_epoch
    end = source.steps_per_epoch * recipe.epochs
    for until, size in (
        (early if recipe.early_size else 0, recipe.early_size),
        (end, recipe.image_size),
    ):
        if step < until:
            batches = distribute(strategy, partial(source.batches, step, size))
            alive.append(batches)
            for number in range(until - step):
                with waiting if number else nullcontext():
                    batch = next(batches)
                yield batch
            step = until


def _save(learner: Learner, run: Run, step: int, progress: Progress | None) -> None:
    """Write a checkpoint; only the chief's is kept, but all workers must take part in reading.

    A disk that is full now may have room later, so training goes on.
    """
    if progress is None:
        checkpoint.take_part(learner.state)
        return
    try:
        checkpoint.write(learner.state, run.checkpoints, step)
    except PipelineError as error:
        progress.say(f"warning: {error}")


def _keep(network: keras.Model, run: Run) -> None:
    if not all(np.isfinite(weight).all() for weight in network.get_weights()):
        raise PipelineError(
            "weights are no numbers after the last step: train with a lower --learning-rate"
        )
    try:
        files.write(run.weights, lambda partial: network.save_weights(str(partial)))
    except (OSError, RuntimeError) as error:  # the second when h5py cannot close its file
        raise PipelineError(
            f"{run.weights} could not be written ({reason(error)}): make room there and go on with "
            f"--run {run.path}"
        ) from error


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that receives the signals that ask to stop; the same one again stops at once.

    Another one does not: systemd, for one, sends SIGHUP right after SIGTERM.
    """
    received: list[int] = []

    def receive(number: int, _: object) -> None:
        if number in received:
            sys.exit(128 + number)
        received.append(number)

    asked = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    heard = [number for number in asked if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, receive) for number in heard}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _named_errors(recipe: Config, run: Path | None) -> Iterator[None]:
    """Give what TensorFlow raises in training a cause and a remedy."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise PipelineError(
            f"out of memory at batch_size {recipe.batch_size}: choose a smaller --batch-size"
        ) from error
    except tf.errors.OpError as error:
        several = recipe.strategy == "multiworker"
        # That is also what is heard of a worker that is gone.
        unclear = several and isinstance(error, tf.errors.FailedPreconditionError)
        if isinstance(error, dataset.UNREADABLE) and not unclear:
            raise PipelineError(
                f"training data cannot be read any more ({reason(error)}): mend that and go on "
                f"with --run {run}"
            ) from error
        if not several:
            raise
        raise PipelineError(
            f"another worker no longer answers ({type(error).__name__}): start all workers again "
            f"with --run {run}"
        ) from error
