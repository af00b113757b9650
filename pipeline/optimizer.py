"""How the weights are moved: stochastic gradient descent, and its rate over the steps."""

import math
from collections.abc import Callable

import tensorflow as tf
import tf_keras as keras

from pipeline.config import Config

MOMENTUM = 0.9
WARM_UP_SHARE = 0.1  # of all steps, during which the cosine's rate rises

# From a recipe, all steps, and those of an epoch.
Schedule = Callable[[Config, int, int], keras.optimizers.schedules.LearningRateSchedule]


def _cosine(
    recipe: Config, steps: int, steps_per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Up in the first tenth, then down to 0 on half a cosine (Loshchilov & Hutter 2016)."""
    warm_up = math.ceil(WARM_UP_SHARE * steps)
    return keras.optimizers.schedules.CosineDecay(
        recipe.learning_rate / (warm_up + 1),  # not 0, of which the first step learns nothing
        max(1, steps - warm_up),
        warmup_target=recipe.learning_rate,
        warmup_steps=warm_up,
    )


def _staircase(
    recipe: Config, steps: int, steps_per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """4 % less every 8 epochs (paper, section 6)."""
    return keras.optimizers.schedules.ExponentialDecay(
        recipe.learning_rate, 8 * steps_per_epoch, 0.96, staircase=True
    )


SCHEDULES: dict[str, Schedule] = {
    "cosine": _cosine,
    "staircase": _staircase,
}


class _FusedSGD(keras.optimizers.SGD):
    """tf-keras's SGD with momentum, to the same values in one operation in place of six."""

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        momentum = self.momentums[self._index_dict[self._var_key(variable)]]
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=momentum.handle,
            lr=tf.cast(self.learning_rate, variable.dtype),
            grad=gradient,
            momentum=tf.cast(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )


def build(recipe: Config, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """The optimizer of a recipe; with `averaging` it keeps an average of the weights as well."""
    steps = steps_per_epoch * recipe.epochs
    averaged_steps = recipe.averaging * steps
    optimizer = _FusedSGD(
        SCHEDULES[recipe.schedule](recipe, steps, steps_per_epoch),
        MOMENTUM,
        nesterov=True,
        weight_decay=recipe.weight_decay,
        use_ema=averaged_steps > 1,
        ema_momentum=1 - 1 / max(averaged_steps, 1),
    )
    # Decaying these shrinks the outputs and regularises nothing.
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer
