import csv

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from pipeline import config, dataset, train
from pipeline import run as runs
from pipeline.errors import PipelineError


def test_a_few_steps_lower_the_loss(run):
    with run.history.open() as file:
        history = list(csv.DictReader(file))
    assert len(history) == run.config.epochs
    assert float(history[-1]["loss"]) < float(history[0]["loss"])


def test_a_run_is_found_again_with_its_recipe(run, recipe, data):
    again = runs.latest(run.path.parent)
    assert again == run
    assert again.config == recipe
    assert again.class_names == data.class_names


def test_saved_weights_are_those_trained(run, data):
    network = train.build(run.config, len(run.class_names))
    network.load_weights(str(run.weights))
    fresh = train.build(run.config, len(run.class_names))
    assert any(
        not np.array_equal(trained, new)
        for trained, new in zip(network.get_weights(), fresh.get_weights(), strict=True)
    )


def test_every_head_is_trained_through_mirrored_replicas(data, image_folder, tmp_path):
    recipe = config.from_preset(
        "demo", dataset=str(image_folder), strategy="mirrored", batch_size=16, precision="bf16"
    )
    recipe = config.Config(**config.to_dict(recipe) | {"auxiliary_heads": True})
    run = train.train(recipe, data, tmp_path)
    with run.history.open() as file:
        (epoch,) = csv.DictReader(file)
    main, aux1, aux2 = (float(epoch[f"{head}_loss"]) for head in ("logits", "aux1", "aux2"))
    assert float(epoch["loss"]) == pytest.approx(main + 0.3 * aux1 + 0.3 * aux2, rel=1e-2)


def test_the_rate_rises_then_falls_to_zero():
    recipe = config.from_preset("demo", learning_rate=0.5)
    rate = train._optimizer(recipe, steps=100)._learning_rate
    curve = [float(rate(step)) for step in range(101)]
    assert curve[0] == 0
    assert max(curve) == pytest.approx(0.5)
    assert curve.index(max(curve)) == 10
    assert curve[100] == pytest.approx(0, abs=1e-6)
    assert curve[10:] == sorted(curve[10:], reverse=True)


def test_weight_decay_spares_biases_and_batch_norm():
    recipe = config.from_preset("demo", weight_decay=0.5, learning_rate=1.0)
    optimizer = train._optimizer(recipe, steps=1)
    optimizer.build([])
    kernel, bias, gamma = (
        tf.Variable([2.0], name=f"layer/{name}") for name in ("kernel", "bias", "gamma")
    )
    decays = [optimizer._use_weight_decay(variable) for variable in (kernel, bias, gamma)]
    assert decays == [True, False, False]


def test_a_loss_that_is_no_number_stops_with_the_step():
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e30), "mse")
    x = np.ones((8, 1), np.float32)
    with pytest.raises(PipelineError, match=r"loss is (nan|inf) after step \d.*learning rate"):
        model.fit(x, x, batch_size=1, verbose=0, callbacks=[train._StopOnNaN()])


def test_a_missing_tpu_is_said(data, image_folder, tmp_path):
    recipe = config.from_preset("demo", dataset=str(image_folder), strategy="tpu")
    with pytest.raises(PipelineError, match="no TPU"):
        train.train(recipe, data, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("bf16", "mixed_bfloat16")])
def test_precision_is_as_asked(precision, dtype):
    assert train.choose_dtype(precision) == dtype


def test_a_set_smaller_than_a_batch_is_repeated(data):
    recipe = config.from_preset("demo", batch_size=500)
    pixels, _ = next(iter(dataset.training_batches(data, recipe)))
    assert len(pixels) == 500


def test_a_broken_cluster_is_said(data, image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "garbage")
    recipe = config.from_preset("demo", dataset=str(image_folder), strategy="multiworker")
    with pytest.raises(PipelineError, match="strategy multiworker cannot start"):
        train.train(recipe, data, tmp_path)
