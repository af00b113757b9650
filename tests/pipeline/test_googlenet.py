import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from pipeline import googlenet


def parameters(model) -> int:
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


# 1000 classes, the same with both auxiliary heads, 10 classes, the same with heads.
PARAMETERS = {
    "paper": (6_998_552, 13_378_280, 5_983_802, 10_334_030),
    "batch_norm": (7_005_832, 13_385_816, 5_991_082, 10_341_566),
    "torchvision": (6_624_904, 13_004_888, 5_610_154, 9_960_638),
}


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameter_counts_are_the_published_ones(variant):
    counts = tuple(
        parameters(googlenet.build(classes, variant=variant, auxiliary_heads=heads))
        for classes in (1000, 10)
        for heads in (False, True)
    )
    assert counts == PARAMETERS[variant]


def test_blocks_have_the_shapes_of_the_paper():
    network = googlenet.build(10, 224)
    shapes = {
        layer.name.removeprefix("inception_"): layer.output.shape[1:].as_list()
        for layer in network.layers
        if layer.name in {f"inception_{block.name}" for block in googlenet.BLOCKS if block}
    }
    assert shapes == {
        "3a": [28, 28, 256],
        "3b": [28, 28, 480],
        "4a": [14, 14, 512],
        "4b": [14, 14, 512],
        "4c": [14, 14, 512],
        "4d": [14, 14, 528],
        "4e": [14, 14, 832],
        "5a": [7, 7, 832],
        "5b": [7, 7, 1024],
    }


@pytest.mark.parametrize("size", [16, 28, 64])
@pytest.mark.parametrize("stem", googlenet.STEMS)
@pytest.mark.parametrize("variant", ["batch_norm", "torchvision"])
def test_small_pictures_work_with_auxiliary_heads(size, stem, variant):
    network = googlenet.build(3, size, variant, stem, auxiliary_heads=True)
    outputs = network(tf.zeros((2, size, size, 3), tf.uint8))
    assert {name: x.shape.as_list() for name, x in outputs.items()} == {
        "logits": [2, 3],
        "aux1": [2, 3],
        "aux2": [2, 3],
        "embedding": [2, 1024],
    }


@pytest.mark.parametrize("variant", googlenet.VARIANTS)
def test_bfloat16_keeps_float32_weights_and_outputs(variant):
    network = googlenet.build(3, 32, variant, "small", True, "mixed_bfloat16")
    assert {weight.dtype for weight in network.weights} == {tf.float32}
    outputs = network(tf.zeros((1, 32, 32, 3), tf.uint8))
    assert {x.dtype for x in outputs.values()} == {tf.float32}
    assert network.get_layer("inception_4a_conv3").compute_dtype == "bfloat16"


def test_local_response_normalization_follows_its_formula():
    x = np.random.default_rng(1).normal(size=(1, 2, 2, 8)).astype(np.float32)
    squares = np.pad(x**2, ((0, 0), (0, 0), (0, 0), (2, 2)))
    sums = sum(squares[..., i : i + 8] for i in range(5))
    expected = x / (1 + 1e-4 / 5 * sums) ** 0.75
    actual = googlenet.LocalResponseNormalization()(x)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_pixels_are_scaled_to_minus_one_to_one():
    network = googlenet.build(3, 16)
    rescale = network.get_layer("rescale")
    np.testing.assert_allclose(rescale(tf.constant([0, 255], tf.uint8)), [-1, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("side", "windows"),
    [
        (14, [(0, 4), (3, 7), (7, 11), (10, 14)]),
        (7, [(0, 2), (1, 4), (3, 6), (5, 7)]),
        (4, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        (2, [(0, 1), (0, 1), (1, 2), (1, 2)]),
        (1, [(0, 1), (0, 1), (0, 1), (0, 1)]),
    ],
)
def test_adaptive_pooling_has_the_windows_of_pytorch(side, windows):
    x = np.random.default_rng(1).normal(size=(2, side, side, 3)).astype(np.float32)
    means = [[x[:, a:b, c:d].mean((1, 2)) for c, d in windows] for a, b in windows]
    pooled = googlenet.AdaptiveAveragePooling()(x)
    np.testing.assert_allclose(pooled, np.array(means).transpose(2, 0, 1, 3), atol=1e-6)


# Of torch.nn.MaxPool2d(3, 2, ceil_mode=True) and (2, 2, ceil_mode=True).
@pytest.mark.parametrize(
    ("side", "of_three", "of_two"),
    [(2, 1, 1), (3, 1, 2), (5, 2, 3), (7, 3, 4), (14, 7, 7), (15, 7, 8), (28, 14, 14)],
)
def test_ceil_mode_pooling_begins_at_the_first_pixel(side, of_three, of_two):
    pixels = keras.Input((side, side, 1))
    falling = -np.arange(side, dtype=np.float32)  # a window's highest is its first
    x = np.broadcast_to(falling[:, np.newaxis, np.newaxis], (1, side, side, 1))
    builder = googlenet._Builder(googlenet.VARIANTS["torchvision"], "float32")
    for size, count in ((3, of_three), (2, of_two)):
        pooled = keras.Model(pixels, builder.max_pool(pixels, size, 2, "pool"))(x)
        assert pooled.shape == (1, count, count, 1)
        np.testing.assert_array_equal(pooled[0, :, 0, 0], falling[::2][:count])


def test_strided_convolution_of_torchvision_is_padded_alike_on_all_sides():
    network = googlenet.build(3, 224, "torchvision")
    assert network.get_layer("conv1_pad").padding == ((3, 3), (3, 3))
    assert network.get_layer("conv1").output.shape == (None, 112, 112, 64)
