import numpy as np
import pytest
import tensorflow as tf

from pipeline import googlenet, inference_graph
from pipeline.inference_graph import BLOCK_OF

FORMS = [
    ("batch_norm", "imagenet", 64),
    ("batch_norm", "small", 32),
    ("batch_norm", "tiny", 28),
    ("paper", "imagenet", 64),
    ("torchvision", "imagenet", 224),
    ("torchvision", "imagenet", 75),
]

USED = FORMS[2], FORMS[4]  # by the demo and for imported weights


def network(variant: str, stem: str, size: int):
    """A network whose batch statistics and biases are not those of a fresh one."""
    tf.keras.utils.set_random_seed(1)
    model = googlenet.build(7, size, variant, stem)
    random = np.random.default_rng(2)
    for layer in model.layers:
        weights = layer.get_weights()
        if layer.name.endswith("_bn"):
            gamma, beta, mean, variance = weights
            layer.set_weights(
                [
                    gamma * random.uniform(0.8, 1.6, gamma.shape),
                    beta + random.normal(0, 0.1, beta.shape),
                    mean + random.normal(0, 0.1, mean.shape),
                    variance * random.uniform(0.3, 1.2, variance.shape),
                ]
            )
        elif len(weights) == 2:
            layer.set_weights(
                [weights[0] * 1.5, weights[1] + random.normal(0, 0.05, weights[1].shape)]
            )
    return model


def pictures(count: int, size: int, seed: int = 3) -> tf.Tensor:
    """Blobs of colour, uint8 [N,S,S,3]."""
    random = np.random.default_rng(seed)
    small = random.uniform(0, 255, (count, 5, 5, 3))
    blobs = tf.image.resize(small, (size, size), "bicubic") + random.normal(
        0, 10, (count, size, size, 3)
    )
    return tf.cast(tf.clip_by_value(blobs, 0, 255), tf.uint8)


def relative(ours, theirs) -> float:
    """Root mean square of the difference, over that of the values."""
    difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    return float(np.sqrt((difference**2).mean() / (np.asarray(theirs, np.float64) ** 2).mean()))


@pytest.mark.parametrize(("variant", "stem", "size"), FORMS)
def test_folding_changes_nothing(variant, stem, size):
    model, pixels = network(variant, stem, size), pictures(3, size)
    expected = model(pixels, training=False)
    answer = inference_graph.build(model, variant, stem, "fp32")(pixels)
    for name in ("logits", "embedding"):
        top = float(tf.reduce_max(tf.abs(expected[name])))
        np.testing.assert_allclose(answer[name], expected[name], atol=2e-5 * top)


@pytest.mark.parametrize(("precision", "error"), [("bf16", 0.05), ("int8", 0.15)])
@pytest.mark.parametrize(
    ("variant", "stem", "size"),
    [pytest.param(*form, marks=[] if form in USED else pytest.mark.slow) for form in FORMS],
)
def test_fewer_bits_cost_little(variant, stem, size, precision, error):
    model, pixels = network(variant, stem, size), pictures(16, size)
    limits = inference_graph.calibrate(model, variant, stem, [pictures(16, size, seed=4)])
    expected = model(pixels, training=False)
    answer = inference_graph.build(model, variant, stem, precision, limits)(pixels)
    for name in ("logits", "embedding"):
        assert answer[name].dtype == tf.float32
        assert relative(answer[name], expected[name]) < error, name


def test_nothing_but_convolutions_and_what_lies_between_is_left():
    model = network("batch_norm", "small", 32)
    limits = inference_graph.calibrate(model, "batch_norm", "small", [pictures(4, 32)])
    for precision, convolution in (
        ("fp32", "Conv2D"),
        ("bf16", "Conv2D"),
        ("int8", "QuantizedConv2DWithBiasAndReluAndRequantize"),
    ):
        graph = inference_graph.build(model, "batch_norm", "small", precision, limits).graph
        kinds = [operation.type for operation in graph.get_operations()]
        assert kinds.count(convolution) == 57
        assert not {"ReadVariableOp", "FusedBatchNormV3", "StatefulPartitionedCall"} & set(kinds)


def test_each_activation_has_a_limit():
    model = network("paper", "imagenet", 64)
    limits = inference_graph.calibrate(
        model, "paper", "imagenet", [pictures(4, 64), pictures(2, 64)]
    )
    inner = {name for name in inference_graph.fold(model) if name not in BLOCK_OF}
    assert limits.keys() == inner | set(BLOCK_OF.values()) | {"lrn1", "lrn2"}
    assert all(limit > 0 for limit in limits.values())


def test_outliers_are_cut_off_and_plain_ranges_are_kept():
    counts = np.full(inference_graph.BINS, 100_000)
    assert inference_graph._limit(counts, 2.0) == pytest.approx(2.0, rel=0.02)
    counts[256:] = 0
    counts[-1] = 1
    assert inference_graph._limit(counts, 2.0) == pytest.approx(0.25, rel=0.05)


def test_a_dead_layer_does_not_stop_calibration():
    model = network("batch_norm", "small", 32)
    layer = model.get_layer("inception_3a_reduce5_bn")
    gamma, beta, mean, variance = layer.get_weights()
    layer.set_weights([gamma * 0, beta * 0 - 1, mean, variance])
    limits = inference_graph.calibrate(model, "batch_norm", "small", [pictures(4, 32)])
    answer = inference_graph.build(model, "batch_norm", "small", "int8", limits)(pictures(2, 32))
    assert np.isfinite(answer["logits"]).all()
