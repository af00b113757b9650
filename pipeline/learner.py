"""The network with all that changes while it learns, and the step that changes it."""

from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path

import tensorflow as tf
import tf_keras as keras

from pipeline import dataset, googlenet, metrics, optimizer, weights
from pipeline.config import STAGES, Config
from pipeline.dataset import Split
from pipeline.metrics import Metrics

DTYPES = {"fp32": "float32", "bf16": "mixed_bfloat16"}  # precision -> tf-keras's policy
AUXILIARY_WEIGHT = 0.3  # of each auxiliary classifier's loss (paper, section 5)

Batch = tuple[tf.Tensor, tf.Tensor]  # uint8 pixels [B,S,S,3] and int64 labels [B]


class Learner:
    """A network in training, on all replicas of a strategy.

    Attributes:
        network: see `googlenet.build`.
        dtype: its tf-keras dtype policy.
        state: all that a later process needs to go on.
        initialized: what was taken from `init_from`; None without one.
    """

    def __init__(
        self,
        recipe: Config,
        class_names: tuple[str, ...],
        steps_per_epoch: int,
        strategy: tf.distribute.Strategy,
        init_from: str = "",
    ) -> None:
        self._recipe = recipe
        self._class_names = class_names
        self._strategy = strategy
        self.dtype = DTYPES[choose_precision(recipe.precision)]
        self.initialized = None
        with strategy.scope():
            any_size = bool(recipe.early_size)
            self.network = build(recipe, len(class_names), self.dtype, any_size)
            if init_from:
                source = Path(init_from)
                self.initialized = weights.initialize(self.network, recipe, class_names, source)
            freeze(self.network, recipe.freeze)
            self._optimizer = optimizer.build(recipe, steps_per_epoch)
            self._optimizer.build(self.network.trainable_variables)
            self._heads = [name for name in self.network.output if name != "embedding"]
            several = [f"{head}_loss" for head in self._heads] if len(self._heads) > 1 else []
            names = ["loss", "accuracy", *several]
            self._means = {name: keras.metrics.Mean(name) for name in names}
        self._step = tf.function(self._all_replicas_step)
        self.state = tf.train.Checkpoint(
            network=self.network, optimizer=self._optimizer, means=self._means
        )

    def learn(self, batch: Batch, flags: list[bool]) -> tuple[float, list[bool]]:
        """One step on a batch of the strategy's.

        Args:
            batch: this worker's share of the step's pictures.
            flags: what this worker has to say to all.

        Returns:
            The loss over the whole batch, no number if a gradient is none: layers between may hide
            that from the loss; and of each flag, whether any worker raised it, the same
            on all workers.
        """
        values = tf.constant(flags, tf.float32)
        raised = self._strategy.experimental_distribute_values_from_function(lambda _: values)
        loss, raised = self._step(*batch, raised)
        return float(loss), [bool(count) for count in raised.numpy()]

    def learning_rate(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        return float(self._optimizer._learning_rate(step))

    def take_means(self) -> dict[str, float]:
        """Means since the last call: `loss`, `accuracy`, and of several heads each one's loss."""
        means = {name: float(mean.result()) for name, mean in self._means.items()}
        for mean in self._means.values():
            mean.reset_state()
        return means

    def measure(self, split: Split, waiting: AbstractContextManager[None]) -> Metrics:
        """What the network of `finished` does on a split; workers meet within `waiting`."""
        batches = dataset.batches(split, self._recipe.image_size)
        with waiting:
            self.finished()
        return metrics.measure(self._predict, batches, split.size, self._class_names)[0]

    def finished(self) -> keras.Model:
        """The network in float32 as it would be kept: with averaged weights, where asked for."""
        variables = self.network.trainable_variables
        last = [variable.numpy() for variable in variables]
        self._optimizer.finalize_variable_values(variables)
        self._copy.set_weights(self.network.get_weights())
        for variable, value in zip(variables, last, strict=True):
            variable.assign(value)
        return self._copy

    @cached_property
    def _copy(self) -> keras.Model:
        return build(self._recipe, len(self._class_names))

    @cached_property
    def _predict(self) -> tf.types.experimental.PolymorphicFunction:
        return tf.function(lambda pixels: self._copy(pixels, training=False)["logits"])

    def _all_replicas_step(self, pixels, labels, flags):
        loss, flags = self._strategy.run(self._replica_step, (pixels, labels, flags))
        total = tf.distribute.ReduceOp.SUM
        return (
            self._strategy.reduce(total, loss, axis=None),
            self._strategy.reduce(total, flags, axis=None),
        )

    def _replica_step(self, pixels, labels, flags):
        variables = self.network.trainable_variables
        targets = tf.one_hot(labels, len(self._class_names))
        smoothing = self._recipe.label_smoothing
        with tf.GradientTape() as tape:
            outputs = self.network(pixels, training=True)
            losses = {
                head: tf.reduce_mean(
                    keras.losses.categorical_crossentropy(
                        targets, outputs[head], from_logits=True, label_smoothing=smoothing
                    )
                )
                for head in self._heads
            }
            loss = tf.add_n(
                [x if head == "logits" else AUXILIARY_WEIGHT * x for head, x in losses.items()]
            )
            # Replicas' gradients are summed, and their batches are of one size.
            share = loss / self._strategy.num_replicas_in_sync
        gradients = tape.gradient(share, variables)
        self._optimizer.apply_gradients(zip(gradients, variables, strict=True))
        correct = tf.argmax(outputs["logits"], axis=1) == labels
        seen = {"loss": loss, "accuracy": correct}
        seen |= {f"{head}_loss": x for head, x in losses.items()}
        for name, mean in self._means.items():
            mean.update_state(seen[name])
        return share + 0.0 * tf.linalg.global_norm(gradients), flags


def build(
    recipe: Config, classes: int, dtype: str = "float32", any_size: bool = False
) -> keras.Model:
    """The recipe's network with fresh weights, see `googlenet.build`."""
    return googlenet.build(
        classes,
        None if any_size else recipe.image_size,
        recipe.variant,
        recipe.stem,
        recipe.auxiliary_heads,
        dtype,
        recipe.dropout,
        recipe.sync_batch_norm,
    )


def choose_precision(precision: str) -> str:
    """`bf16` or `fp32`; for `auto`, what is fast on this machine."""
    if precision != "auto":
        return precision
    return "bf16" if _has_fast_bfloat16() else "fp32"


def _has_fast_bfloat16() -> bool:
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability")
        return capability is not None and capability >= (8, 0)
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def freeze(network: keras.Model, last: str) -> None:
    """Keep the weights of all stages up to and including one; batch statistics too."""
    frozen = STAGES[: STAGES.index(last) + 1] if last else ()
    for layer in network.layers:
        name = layer.name.split("_")
        stage = name[1] if name[0] == "inception" else "stem" if "conv" in name[0] else None
        if stage in frozen:
            layer.trainable = False
