"""Train the network through a tf.distribute strategy.

    python -m pipeline train --preset demo [--dataset NAME_OR_FOLDER] [--strategy mirrored]

prints a progress bar and leaves a run folder, see `run.py`. The preset `demo` takes two minutes on
two cores.
"""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf
import tf_keras as keras

from pipeline import dataset, files, googlenet
from pipeline.config import Config
from pipeline.dataset import Dataset
from pipeline.errors import PipelineError
from pipeline.run import Run, create

# Weight of each auxiliary classifier's loss (paper, section 5).
AUXILIARY_WEIGHT = 0.3
MOMENTUM = 0.9
WARM_UP_SHARE = 0.1  # of all steps, during which the rate rises from 0


def _one_device() -> tf.distribute.Strategy:
    gpu = bool(tf.config.list_physical_devices("GPU"))
    return tf.distribute.OneDeviceStrategy("/gpu:0" if gpu else "/cpu:0")


def _tpu() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, tf.errors.OpError) as error:
        raise PipelineError(
            "strategy tpu: no TPU was found: choose another with --strategy"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


STRATEGIES: dict[str, Callable[[], tf.distribute.Strategy]] = {
    "one": _one_device,
    "mirrored": tf.distribute.MirroredStrategy,
    "multiworker": tf.distribute.MultiWorkerMirroredStrategy,
    "tpu": _tpu,
}


def train(recipe: Config, data: Dataset, root: Path) -> Run:
    """Train a network by the recipe and leave it in a new run folder below `root`.

    Raises:
        PipelineError: the loss is no longer a number, or the strategy cannot be had.
    """
    keras.utils.set_random_seed(recipe.seed)
    try:
        strategy = STRATEGIES[recipe.strategy]()
    except (ValueError, RuntimeError) as error:  # a TF_CONFIG that is none, a cluster that is not
        reason = str(error).splitlines()[0]
        raise PipelineError(f"strategy {recipe.strategy} cannot start: {reason}") from error
    dtype = choose_dtype(recipe.precision)
    steps = max(1, data.train_size // recipe.batch_size)
    run = create(root, recipe, data.class_names)
    print(
        f"training GoogLeNet ({recipe.variant}, {recipe.image_size}×{recipe.image_size}) on "
        f"{data.train_size:,} images of {len(data.class_names)} classes: {recipe.epochs} epochs of "
        f"{steps} steps, {dtype}, {type(strategy).__name__}",
        flush=True,
    )
    with strategy.scope():
        network = build(recipe, len(data.class_names), dtype)
        model = _compiled(network, recipe, steps * recipe.epochs)
    started = time.monotonic()
    model.fit(
        dataset.training_batches(data, recipe),
        epochs=recipe.epochs,
        steps_per_epoch=steps,
        verbose=1 if sys.stdout.isatty() else 2,
        callbacks=[_StopOnNaN(), keras.callbacks.CSVLogger(str(run.history))],
    )
    seconds = time.monotonic() - started
    files.write(run.weights, lambda partial: network.save_weights(str(partial)))
    rate = steps * recipe.epochs * recipe.batch_size / seconds
    print(f"trained in {seconds:.0f} s, {rate:,.0f} images/s: {run.path}")
    return run


def build(recipe: Config, classes: int, dtype: str = "float32") -> keras.Model:
    """The recipe's network with fresh weights, see `googlenet.build`."""
    return googlenet.build(
        classes, recipe.image_size, recipe.variant, recipe.stem, recipe.auxiliary_heads, dtype
    )


def choose_dtype(precision: str) -> str:
    """The tf-keras dtype policy for a precision; `auto` takes bfloat16 where that is fast."""
    bf16 = precision == "bf16" or (precision == "auto" and _has_fast_bfloat16())
    return "mixed_bfloat16" if bf16 else "float32"


def _has_fast_bfloat16() -> bool:
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability")
        return capability is not None and capability >= (8, 0)
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _compiled(network: keras.Model, recipe: Config, steps: int) -> keras.Model:
    """The network's classifiers as a compiled model; it shares the network's weights."""
    heads = {name: x for name, x in network.output.items() if name != "embedding"}
    model = keras.Model(network.input, heads)
    model.compile(
        _optimizer(recipe, steps),
        loss={name: keras.losses.SparseCategoricalCrossentropy(from_logits=True) for name in heads},
        loss_weights={name: 1.0 if name == "logits" else AUXILIARY_WEIGHT for name in heads},
        metrics={"logits": ["accuracy"]},
    )
    return model


def _optimizer(recipe: Config, steps: int) -> keras.optimizers.Optimizer:
    warm_up = math.ceil(WARM_UP_SHARE * steps)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm_up), warmup_target=recipe.learning_rate, warmup_steps=warm_up
    )
    optimizer = keras.optimizers.SGD(
        rate, MOMENTUM, nesterov=True, weight_decay=recipe.weight_decay
    )
    # Decaying these shrinks the outputs and regularises nothing.
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


class _StopOnNaN(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise PipelineError(
                f"the loss is {loss} after step {int(self.model.optimizer.iterations)}: "
                "train with a lower learning rate"
            )
