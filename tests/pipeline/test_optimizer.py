import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from pipeline import config, optimizer


def curve(recipe, steps_per_epoch, steps) -> list[float]:
    schedule = optimizer.build(recipe, steps_per_epoch)._learning_rate
    return [float(schedule(step)) for step in range(steps)]


def test_a_single_step_learns():
    assert curve(config.from_preset("demo", learning_rate=0.5), 1, 1) == [pytest.approx(0.25)]


def test_the_cosine_rises_then_falls_to_zero():
    rates = curve(config.from_preset("demo", learning_rate=0.5), 100, 101)
    assert rates[0] == pytest.approx(0.5 / 11)
    assert max(rates) == pytest.approx(0.5)
    assert rates.index(max(rates)) == 10
    assert rates[100] == pytest.approx(0, abs=1e-6)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_staircase_loses_four_percent_every_eight_epochs():
    rates = curve(config.from_preset("imagenet"), 2, 40)
    assert rates[:16] == pytest.approx([0.01] * 16)
    assert rates[16:32] == pytest.approx([0.0096] * 16)
    assert rates[32:] == pytest.approx([0.01 * 0.96**2] * 8)


def test_steps_are_those_of_tf_keras():
    random = np.random.default_rng(1)
    recipe = config.from_preset("demo", learning_rate=0.5, weight_decay=0.01)
    ours = optimizer.build(recipe, 20)
    theirs = keras.optimizers.SGD(
        ours._learning_rate, optimizer.MOMENTUM, nesterov=True, weight_decay=0.01
    )
    start = random.normal(size=(3, 4)).astype(np.float32)
    moved, expected = (tf.Variable(start, name="kernel") for _ in range(2))
    for _ in range(20):
        gradient = tf.constant(random.normal(size=(3, 4)), tf.float32)
        ours.apply_gradients([(gradient, moved)])
        theirs.apply_gradients([(gradient, expected)])
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


def test_weight_decay_spares_biases_and_batch_norm():
    built = optimizer.build(config.from_preset("demo"), 1)
    built.build([])
    names = ("kernel", "bias", "gamma", "beta")
    variables = [tf.Variable([2.0], name=f"layer/{name}") for name in names]
    assert [built._use_weight_decay(variable) for variable in variables] == [True, *3 * [False]]


def test_decay_does_what_an_l2_penalty_of_a_tenth_does():
    recipe = config.from_preset("imagenet", learning_rate=0.04, weight_decay=0.05)
    ours, theirs = optimizer.build(recipe, 10_000), tf.Variable([1.0], name="kernel")
    plain = config.from_preset("imagenet", learning_rate=0.04, weight_decay=0.0)
    with_penalty = optimizer.build(plain, 10_000)
    decayed, penalised = tf.Variable([1.0], name="kernel"), theirs
    for _ in range(500):
        ours.apply_gradients([(tf.zeros(1), decayed)])
        with_penalty.apply_gradients([(0.005 * penalised, penalised)])
    assert float(decayed[0]) == pytest.approx(float(penalised[0]), rel=0.02)
    assert float(decayed[0]) < 0.5


@pytest.mark.parametrize(("averaging", "steps"), [(0.0, 100), (0.1, 100), (0.5, 1)])
def test_weights_are_averaged_over_a_share_of_the_steps(averaging, steps):
    recipe = config.from_preset("demo", averaging=averaging, learning_rate=0.1, weight_decay=0.0)
    built, variable = optimizer.build(recipe, steps), tf.Variable([0.0], name="kernel")
    built.build([variable])
    for _ in range(steps):
        built.apply_gradients([(tf.constant([-1.0]), variable)])
    last = float(variable[0])
    built.finalize_variable_values([variable])
    averaged = float(variable[0])
    assert (averaged < last) == (averaging * steps > 1)
