from contextlib import nullcontext
from functools import partial
from itertools import islice

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from pipeline import config, feed, learner, preprocessing, strategy
from pipeline.learner import Learner


def recipe(image_folder, **fields) -> config.Config:
    few = {"batch_size": 16, "learning_rate": 0.01, "precision": "fp32", "epochs": 4}
    return config.from_preset("demo", dataset=str(image_folder), **few | fields)


def learn(
    data, made: config.Config, steps: int, traced: bool = True, checkpoint: str = "", first: int = 0
) -> Learner:
    """A learner after some steps; tracing the step takes longer than a few of them."""
    keras.utils.set_random_seed(made.seed)
    started = strategy.start(made.strategy)
    source = feed.feed(data.train, made)
    built = Learner(made, data.class_names, source.steps_per_epoch, started)
    if not traced:
        built._step = built._all_replicas_step
    if checkpoint:
        built.state.read(checkpoint).assert_consumed()
    batches = strategy.distribute(started, partial(source.batches, first, made.image_size))
    for batch in islice(batches, steps):
        built.learn(batch, [False])
    return built


def test_every_head_is_trained_through_mirrored_replicas(data, image_folder):
    made = recipe(image_folder, strategy="mirrored", precision="bf16", auxiliary_heads=True)
    means = learn(data, made, 2).take_means()
    main, aux1, aux2 = (means[f"{head}_loss"] for head in ("logits", "aux1", "aux2"))
    assert means["loss"] == pytest.approx(main + 0.3 * aux1 + 0.3 * aux2, rel=1e-2)


def test_steps_after_a_checkpoint_are_those_without_one(data, image_folder, tmp_path):
    """Dropout too: 0.4 of the last layer's inputs and 0.7 of the auxiliary heads'."""
    made = recipe(image_folder, auxiliary_heads=True, dropout=0.4)
    half = learn(data, made, 1, traced=False)
    half.take_means()
    saved = half.state.write(str(tmp_path / "state"))
    whole = learn(data, made, 1, traced=False)
    whole.take_means()
    batch = next(iter(feed.feed(data.train, made).batches(1, 28)))
    whole.learn(batch, [False])
    gone_on = learn(data, made, 1, traced=False, checkpoint=saved, first=1).take_means()
    assert gone_on == pytest.approx(whole.take_means(), rel=1e-4)
    assert gone_on != pytest.approx(half.take_means(), rel=1e-4)


def test_flags_come_back_and_means_start_anew_once_taken(data, image_folder):
    made = recipe(image_folder)
    built = learn(data, made, 0, traced=False)
    batch = next(iter(feed.feed(data.train, made).batches(0, 28)))
    assert built.learn(batch, [True, False])[1] == [True, False]
    assert built.take_means()["loss"] > 0
    assert built.take_means()["loss"] == 0


def test_frozen_stages_keep_their_weights_and_statistics(data, image_folder):
    built = learn(data, recipe(image_folder, freeze="4a", init_from="a run", epochs=1), 0)
    before = {layer.name: layer.get_weights() for layer in built.network.layers}
    built = learn(
        data, recipe(image_folder, freeze="4a", init_from="a run", epochs=1), 3, traced=False
    )
    moved = {
        layer.name
        for layer in built.network.layers
        if any((a != b).any() for a, b in zip(layer.get_weights(), before[layer.name], strict=True))
    }
    assert not any(name.startswith(("conv", "inception_3", "inception_4a")) for name in moved)
    assert {"inception_4b_conv1", "inception_4b_conv1_bn", "inception_5b_conv1", "logits"} <= moved


def test_the_finished_network_has_the_averaged_weights_and_training_goes_on_with_the_last(
    data, image_folder
):
    built = learn(data, recipe(image_folder, averaging=0.5, epochs=50), 3, traced=False)
    last = [weight.numpy() for weight in built.network.trainable_variables]
    averaged = [weight.numpy() for weight in built.finished().trainable_variables]
    assert any((a != b).any() for a, b in zip(last, averaged, strict=True))
    for before, variable in zip(last, built.network.trainable_variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), before)


def test_label_smoothing_is_in_the_loss(data, image_folder):
    plain, smoothed = (
        learn(data, recipe(image_folder, label_smoothing=share), 1, traced=False).take_means()[
            "loss"
        ]
        for share in (0.0, 0.3)
    )
    assert plain != pytest.approx(smoothed, rel=1e-4)


def test_measuring_is_in_float32_on_the_split_given(data, image_folder):
    built = learn(data, recipe(image_folder, precision="bf16"), 2, traced=False)
    measured = built.measure(data.test, nullcontext())
    assert measured.images == data.test.size
    assert built.dtype == "mixed_bfloat16"
    assert built.finished().get_layer("inception_4a_conv3").compute_dtype == "float32"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_is_as_asked(precision):
    assert learner.choose_precision(precision) == precision


def test_the_imagenet_recipe_runs_a_few_steps_on_a_thousand_classes():
    random = np.random.default_rng(1)
    pictures = random.integers(0, 255, (64, 90, 120, 3), np.uint8)
    labels = random.integers(0, 1000, 64)
    records = tf.data.Dataset.from_tensor_slices((pictures, labels))
    from pipeline.dataset import Dataset, Split

    split = Split(records, preprocessing.cut, 64)
    data = Dataset("made", tuple(f"class {i}" for i in range(1000)), split, split)
    made = config.from_preset("imagenet", batch_size=8)
    built = learn(data, made, 3)
    means = built.take_means()
    # Nothing is known yet: ln 1000 for each head.
    assert means["logits_loss"] == pytest.approx(np.log(1000), rel=0.1)
    assert means["loss"] == pytest.approx(1.6 * np.log(1000), rel=0.1)
    assert built.learning_rate(0) == pytest.approx(0.01)
