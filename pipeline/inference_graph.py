"""A trained network -> the graph that serves it: constants only, in the precision asked for.

Batch normalisation is folded into the convolutions, dropout and auxiliary heads are gone, and the
rest is built by `googlenet.blocks`, as the trained network was, of TensorFlow's own operations.

    precision   convolutions                    runs on
    fp32        float32                         any processor
    bf16        bfloat16                        any; fast where it has AVX512-BF16 or AMX
    int8        8-bit integers, oneDNN's        x86 with TF_ENABLE_ONEDNN_OPTS=1, TensorFlow's
                                                default from AVX512-VNNI on

int8: activations are unsigned, from 0 (all follow a ReLU) to a limit of their own, calibrated on
training images; filters are signed, with a scale per output channel. docs/performance.md has what
each precision costs and brings.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from pipeline import googlenet
from pipeline.googlenet import BLOCKS, LRN, VARIANTS, Variant

PRECISIONS = ("fp32", "bf16", "int8")
DTYPES = {"fp32": tf.float32, "bf16": tf.bfloat16}

# The four ends of a block share one range, so that putting them together is a plain concat.
BLOCK_OF = {
    f"inception_{block.name}_{end}": f"inception_{block.name}"
    for block in BLOCKS
    if block
    for end in ("conv1", "conv3", "conv5", "pool_proj")
}
BINS = 2048  # of a histogram of activations
LEAST_BINS = 128  # that a limit keeps

Graph = Callable[[tf.Tensor], dict[str, tf.Tensor]]
Limits = dict[str, float]


class Convolution(NamedTuple):
    """Weights of a convolution, batch normalisation folded in: [h,w,in,out] and [out], float32."""

    kernel: np.ndarray
    bias: np.ndarray


def build(
    network: keras.Model, variant: str, stem: str, precision: str, limits: Limits | None = None
) -> Graph:
    """The network as one function of constants.

    Args:
        network: `evaluate.load_network`'s: float32, with its trained weights.
        variant: the network's, a key of `googlenet.VARIANTS`.
        stem: the network's, a key of `googlenet.STEMS`.
        precision: one of `PRECISIONS`.
        limits: for int8, what `calibrate` returned.

    Returns:
        From uint8 pixels [N,S,S,3] to float32 `logits` [N,C] and `embedding` [N,1024].
    """
    form, convolutions = VARIANTS[variant], fold(network)
    if precision == "int8":
        assert limits is not None
        return _function(network, stem, _Int8(form, convolutions, limits))
    return _function(network, stem, _Float(form, convolutions, DTYPES[precision]))


def calibrate(network: keras.Model, variant: str, stem: str, pixels: Iterable[tf.Tensor]) -> Limits:
    """Choose where int8 cuts off each activation: where the squared error is least.

    A limit at the highest value seen would spend most of the 255 steps on a few outliers.

    Args:
        network: as in `build`.
        variant: as in `build`.
        stem: as in `build`.
        pixels: batches of training images, uint8 [N,S,S,3]; read twice.

    Returns:
        Limit of each activation by the layer's name, of a block's output by the block's.
    """
    form, convolutions = VARIANTS[variant], fold(network)

    @tf.function
    def highest(batch: tf.Tensor) -> dict[str, tf.Tensor]:
        seen = _activations(form, convolutions, stem, batch)
        return {name: tf.reduce_max(values) for name, values in seen.items()}

    maxima = _merged((highest(batch) for batch in pixels), np.maximum)
    tops = {name: float(value) or 1.0 for name, value in maxima.items()}  # 0: a dead layer

    @tf.function
    def histograms(batch: tf.Tensor) -> dict[str, tf.Tensor]:
        seen = _activations(form, convolutions, stem, batch)
        return {name: _histogram(values, tops[name]) for name, values in seen.items()}

    counts = _merged((histograms(batch) for batch in pixels), np.add)
    return {name: _limit(counts[name], top) for name, top in tops.items()}


def fold(network: keras.Model) -> dict[str, Convolution]:
    """The convolutions by name, each with its batch normalisation folded in."""
    layers = {layer.name: layer for layer in network.layers}
    return {
        name: _folded(layer, layers.get(f"{name}_bn"))
        for name, layer in layers.items()
        if isinstance(layer, keras.layers.Conv2D)
    }


def _folded(layer: keras.layers.Conv2D, norm: keras.layers.Layer | None) -> Convolution:
    if norm is None:
        return Convolution(*layer.get_weights())
    gamma, beta, mean, variance = norm.get_weights()
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return Convolution(layer.get_weights()[0] * scale, beta - mean * scale)


def _function(network: keras.Model, stem: str, net: "_Float | _Int8") -> Graph:
    kernel, bias = network.get_layer("logits").get_weights()

    @tf.function(input_signature=[tf.TensorSpec(network.input.shape, tf.uint8, "pixels")])
    def graph(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        *_, (_, x) = googlenet.blocks(net, net.read(pixels), stem)
        embedding = tf.reduce_mean(net.values(x), (1, 2))
        return {"embedding": embedding, "logits": embedding @ tf.constant(kernel) + bias}

    return graph.get_concrete_function()


class _Float:
    """Layers in float32 or bfloat16; TensorFlow fuses each convolution with its bias and ReLU."""

    def __init__(
        self, variant: Variant, convolutions: dict[str, Convolution], dtype: tf.DType
    ) -> None:
        self.variant = variant
        self.convolutions = convolutions
        self.dtype = dtype

    def read(self, pixels: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.cast(pixels, tf.float32) / 127.5 - 1, self.dtype)

    def conv(self, x: tf.Tensor, filters: int, kernel: int, name: str, stride: int = 1):
        folded = self.convolutions[name]
        pads = _pads(self.variant, x.shape[1], kernel, stride)
        padding = [[0, 0], pads, pads, [0, 0]] if self.variant.torch_windows else "SAME"
        x = tf.nn.conv2d(x, tf.constant(folded.kernel, self.dtype), stride, padding)
        return tf.nn.relu(tf.nn.bias_add(x, tf.constant(folded.bias, self.dtype)))

    def max_pool(self, x: tf.Tensor, size: int, stride: int, name: str) -> tf.Tensor:
        padding = googlenet.pool_padding(self.variant, x.shape[1], size, stride)
        return tf.nn.max_pool2d(x, size, stride, padding.upper())

    def lrn(self, x: tf.Tensor, name: str) -> tf.Tensor:
        # The kernel knows no bfloat16.
        return tf.cast(tf.nn.local_response_normalization(self.values(x), **LRN), self.dtype)

    def concat(self, branches: list[tf.Tensor], name: str) -> tf.Tensor:
        return tf.concat(branches, -1)

    @staticmethod
    def values(x: tf.Tensor) -> tf.Tensor:
        return tf.cast(x, tf.float32)


class _Observed(_Float):
    """Layers in float32 that keep what int8 has to hold in 8 bits."""

    def __init__(self, variant: Variant, convolutions: dict[str, Convolution]) -> None:
        super().__init__(variant, convolutions, tf.float32)
        self.seen: dict[str, list[tf.Tensor]] = {}

    def conv(self, x: tf.Tensor, filters: int, kernel: int, name: str, stride: int = 1):
        return self._keep(BLOCK_OF.get(name, name), super().conv(x, filters, kernel, name, stride))

    def lrn(self, x: tf.Tensor, name: str) -> tf.Tensor:
        return self._keep(name, super().lrn(x, name))

    def _keep(self, name: str, x: tf.Tensor) -> tf.Tensor:
        self.seen.setdefault(name, []).append(tf.reshape(x, [-1]))
        return x


class _Quantized(NamedTuple):
    """What is meant is (values - zero) · limit / 255.

    Attributes:
        values: quint8 [N,H,W,C].
        limit: what 255 stands for, where zero is 0.
        zero: what 0 stands for, by no means a whole number.
    """

    values: tf.Tensor
    limit: float
    zero: float = 0.0


class _Int8:
    """Layers in 8-bit integers, each a single oneDNN operation of stock TensorFlow."""

    def __init__(
        self, variant: Variant, convolutions: dict[str, Convolution], limits: Limits
    ) -> None:
        self.variant = variant
        self.convolutions = convolutions
        self.limits = limits

    def read(self, pixels: tf.Tensor) -> _Quantized:
        # The pixels as they are: [-1, 1] has 255 steps.
        return _Quantized(tf.bitcast(pixels, tf.quint8), limit=2.0, zero=127.5)

    def conv(self, x: _Quantized, filters: int, kernel: int, name: str, stride: int = 1):
        folded = self.convolutions[name]
        tops = np.maximum(np.abs(folded.kernel).max((0, 1, 2)), 1e-12)  # per output channel
        weights = np.round(folded.kernel * (127 / tops)).astype(np.int8)
        values, bias, padding = x.values, folded.bias, "SAME"
        if x.zero:
            # Padding must mean nothing too, which the operation's own zeros do not here.
            pads = _pads(self.variant, values.shape[1], kernel, stride)
            values, padding = _padded(values, pads, round(x.zero)), "VALID"
            bias = bias - (weights * (tops / 127)).sum((0, 1, 2)) * x.zero * x.limit / 255
        limit = self.limits[BLOCK_OF.get(name, name)]
        output, _, _ = tf.raw_ops.QuantizedConv2DWithBiasAndReluAndRequantize(
            input=values,
            filter=_constant(weights),  # refused unless it is a constant of the graph
            bias=tf.constant(bias, tf.float32),
            min_input=0.0,
            max_input=x.limit,
            min_filter=tf.constant(-tops, tf.float32),
            max_filter=tf.constant(tops, tf.float32),
            min_freezed_output=0.0,
            max_freezed_output=limit,
            strides=[1, stride, stride, 1],
            padding=padding,
            out_type=tf.quint8,
        )
        return _Quantized(output, limit)

    def max_pool(self, x: _Quantized, size: int, stride: int, name: str) -> _Quantized:
        padding = googlenet.pool_padding(self.variant, x.values.shape[1], size, stride)
        values, _, _ = tf.raw_ops.QuantizedMaxPool(
            input=x.values, min_input=0.0, max_input=x.limit, ksize=[1, size, size, 1],
            strides=[1, stride, stride, 1], padding=padding.upper(),
        )  # fmt: skip
        return x._replace(values=values)

    def lrn(self, x: _Quantized, name: str) -> _Quantized:
        limit = self.limits[name]
        normalized = tf.nn.local_response_normalization(self.values(x), **LRN)
        steps = tf.round(tf.minimum(normalized * (255 / limit), 255.0))
        return _Quantized(tf.bitcast(tf.cast(steps, tf.uint8), tf.quint8), limit)

    def concat(self, branches: list[_Quantized], name: str) -> _Quantized:
        return branches[0]._replace(values=tf.concat([x.values for x in branches], -1))

    @staticmethod
    def values(x: _Quantized) -> tf.Tensor:
        return tf.cast(tf.bitcast(x.values, tf.uint8), tf.float32) * (x.limit / 255)


def _pads(variant: Variant, side: int, kernel: int, stride: int) -> list[int]:
    """Rows to add before and after a side, for windows as the variant lays them."""
    if variant.torch_windows:
        return [kernel // 2, kernel // 2]
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return [total // 2, total - total // 2]


def _padded(values: tf.Tensor, pads: list[int], value: int) -> tf.Tensor:
    plain = tf.pad(
        tf.bitcast(values, tf.uint8), [[0, 0], pads, pads, [0, 0]], constant_values=value
    )
    return tf.bitcast(plain, tf.quint8)


def _constant(weights: np.ndarray) -> tf.Tensor:
    """A constant of type qint8; NumPy has no such type, so that its bytes are handed over."""
    proto = tf.make_tensor_proto(weights)
    proto.dtype = tf.qint8.as_datatype_enum
    return (
        tf.compat.v1.get_default_graph()
        .create_op(
            "Const",
            [],
            [tf.qint8],
            attrs={
                "dtype": tf.compat.v1.AttrValue(type=proto.dtype),
                "value": tf.compat.v1.AttrValue(tensor=proto),
            },
        )
        .outputs[0]
    )


def _activations(
    variant: Variant, convolutions: dict[str, Convolution], stem: str, pixels: tf.Tensor
) -> dict[str, tf.Tensor]:
    """All values of each activation, flat."""
    net = _Observed(variant, convolutions)
    for _ in googlenet.blocks(net, net.read(pixels), stem):
        pass
    return {name: tf.concat(values, 0) for name, values in net.seen.items()}


def _merged(found: Iterable[dict[str, tf.Tensor]], merge: Callable) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for values in found:
        for name, value in values.items():
            merged[name] = merge(merged[name], value) if name in merged else value.numpy()
    return merged


def _histogram(values: tf.Tensor, top: float) -> tf.Tensor:
    """Counts of the positive values, int64 [BINS]: a zero is exact, wherever the limit is."""
    positive = tf.boolean_mask(values, values > 0)
    return tf.histogram_fixed_width(positive, [0.0, top], BINS, tf.int64)


def _limit(counts: np.ndarray, top: float) -> float:
    """Where to cut off: rounding to 255 steps below and cutting off above cost least together."""
    width = top / BINS
    centers = (np.arange(BINS) + 0.5) * width
    kept = np.arange(LEAST_BINS, BINS + 1)
    rounding = [counts[:n].sum() * (n * width / 255) ** 2 / 12 for n in kept]
    cutting = [(counts[n:] * (centers[n:] - n * width) ** 2).sum() for n in kept]
    return float(kept[np.argmin(np.add(rounding, cutting))] * width)
