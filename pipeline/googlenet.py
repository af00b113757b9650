"""GoogLeNet (Inception v1): the network, from a table with one row per Inception block.

Source: Szegedy et al., *Going deeper with convolutions* (2014), table 1 for the blocks and section
5 for the auxiliary heads. Three variants are built from the same table, see `VARIANTS`.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers


class Inception(NamedTuple):
    """One Inception block: the width of each convolution, named as in table 1 of the paper."""

    name: str
    conv1: int
    reduce3: int
    conv3: int
    reduce5: int
    conv5: int
    pool_proj: int


# Comments give the block's output at a 224×224 input; None is a stride-2 max-pooling.
BLOCKS: tuple[Inception | None, ...] = (
    Inception("3a", 64, 96, 128, 16, 32, 32),  # 28×28×256
    Inception("3b", 128, 128, 192, 32, 96, 64),  # 28×28×480
    None,
    Inception("4a", 192, 96, 208, 16, 48, 64),  # 14×14×512
    Inception("4b", 160, 112, 224, 24, 64, 64),  # 14×14×512
    Inception("4c", 128, 128, 256, 24, 64, 64),  # 14×14×512
    Inception("4d", 112, 144, 288, 32, 64, 64),  # 14×14×528
    Inception("4e", 256, 160, 320, 32, 128, 128),  # 14×14×832
    None,
    Inception("5a", 256, 160, 320, 32, 128, 128),  # 7×7×832
    Inception("5b", 384, 192, 384, 48, 128, 128),  # 7×7×1024
)

# Auxiliary head -> the block it reads.
AUXILIARY_HEADS = {"aux1": "4a", "aux2": "4d"}


@dataclass(frozen=True)
class Variant:
    """What differs between the published forms of the network.

    Attributes:
        batch_norm: batch normalisation after each convolution, in place of biases and LRN.
        conv5_kernel: side of the second kernel in the "5×5" branch.
        last_pool: side of the fourth pooling's windows.
        dropout: share dropped before the classifier.
        torch_windows: windows lie as PyTorch lays them: strided convolutions are padded alike on
            all sides, pooling is ceil-mode and begins at the first pixel, auxiliary heads pool
            adaptively. Otherwise they lie as TensorFlow's SAME has them.
    """

    batch_norm: bool = True
    conv5_kernel: int = 5
    last_pool: int = 3
    dropout: float = 0.4
    torch_windows: bool = False


VARIANTS = {
    # The paper's: biases and local response normalisation.
    "paper": Variant(batch_norm=False),
    # The paper's layers with batch normalisation in place of biases and LRN.
    "batch_norm": Variant(),
    # torchvision's: 3×3 in the 5×5 branch (an accident it kept), 2×2 fourth pool, less dropout.
    # Its `transform_input` undoes ImageNet's normalisation: it sees [-1, 1] as all variants do.
    "torchvision": Variant(conv5_kernel=3, last_pool=2, dropout=0.2, torch_windows=True),
}


@dataclass(frozen=True)
class Stem:
    """How fast the stem shrinks the picture before the first Inception block."""

    kernel: int
    stride: int
    pool: bool


STEMS = {
    "imagenet": Stem(kernel=7, stride=2, pool=True),  # 1/8 at block 3a: the paper's
    "small": Stem(kernel=3, stride=1, pool=True),  # 1/4 at block 3a: pictures of 28 to 64 pixels
    "tiny": Stem(kernel=3, stride=1, pool=False),  # 1/2: pictures of up to 32 pixels, 4 × the cost
}

# Caffe's and the paper's normalisation: 5 channels, alpha 1e-4 divided by the window, beta 0.75.
LRN = {"depth_radius": 2, "bias": 1.0, "alpha": 1e-4 / 5, "beta": 0.75}
BATCH_NORM = {"momentum": 0.9, "epsilon": 1e-3}


class LocalResponseNormalization(layers.Layer):
    """Local response normalisation across channels, float [N,H,W,C] to the same shape."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        # The kernel knows no bfloat16.
        normalized = tf.nn.local_response_normalization(tf.cast(inputs, tf.float32), **LRN)
        return tf.cast(normalized, inputs.dtype)


class AdaptiveAveragePooling(layers.Layer):
    """PyTorch's adaptive average pooling to 4×4, float [N,H,W,C] to [N,4,4,C], any H and W.

    Window i of a side of n pixels is [⌊i·n/4⌋, ⌈(i+1)·n/4⌉): below 4 pixels some are repeated.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        # Means of rows, then of columns, as products: the gradient of slices is a picture for each.
        _, height, width, channels = inputs.shape
        rows = tf.reshape(inputs, (-1, height, width * channels))
        rows = tf.matmul(self._windows(height, inputs.dtype), rows)
        columns = tf.reshape(rows, (-1, width, channels))
        columns = tf.matmul(self._windows(width, inputs.dtype), columns)
        return tf.reshape(columns, (-1, 4, 4, channels))

    @staticmethod
    def _windows(side: int, dtype: tf.DType) -> tf.Tensor:
        """The share that each pixel of a side has in each window: [4,side]."""
        shares = np.zeros((4, side))
        for i, row in enumerate(shares):
            window = slice(i * side // 4, math.ceil((i + 1) * side / 4))
            row[window] = 1 / (window.stop - window.start)
        return tf.constant(shares, dtype)


class Dropout(layers.Layer):
    """tf-keras's, whose generator's state is kept in a checkpoint; theirs begins anew after it.

    Seeded from Python's `random`, which `keras.utils.set_random_seed` seeds.
    """

    def __init__(self, rate: float, **names: str) -> None:
        super().__init__(**names)
        self._rate = rate
        self._generator = tf.random.Generator.from_seed(random.getrandbits(32))

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training or not self._rate:
            return inputs
        seed = self._generator.make_seeds()[:, 0]
        return tf.nn.experimental.stateless_dropout(inputs, self._rate, seed)


class Layers(Protocol):
    """What the network is made of: Keras layers for training, constants for inference.

    `x` is whatever the layers hand to each other; weights are found by the names.
    """

    variant: Variant

    def conv(self, x: Any, filters: int, kernel: int, name: str, stride: int = 1) -> Any:
        """Convolution, batch normalisation where the variant has it, ReLU."""

    def max_pool(self, x: Any, size: int, stride: int, name: str) -> Any:
        """Maxima of windows, padded as `pool_padding` says."""

    def lrn(self, x: Any, name: str) -> Any:
        """Local response normalisation, see `LRN`."""

    def concat(self, branches: list[Any], name: str) -> Any:
        """The branches' channels one after the other."""


def blocks(net: Layers, x: Any, stem: str) -> Iterator[tuple[str, Any]]:
    """The network from the scaled picture on: (name, output) of the stem and of each block.

    Comments give the shape at a 224×224 input.
    """
    form = STEMS[stem]
    x = net.conv(x, 64, form.kernel, "conv1", form.stride)  # 112×112×64
    if form.pool:
        x = net.max_pool(x, 3, 2, "pool1")  # 56×56×64
    x = _lrn(net, x, "lrn1")
    x = net.conv(x, 64, 1, "conv2_reduce")
    x = net.conv(x, 192, 3, "conv2")
    x = _lrn(net, x, "lrn2")
    x = net.max_pool(x, 3, 2, "pool2")  # 28×28×192
    yield "stem", x
    pools = iter((("pool3", 3), ("pool4", net.variant.last_pool)))
    for block in BLOCKS:
        if block is None:
            name, size = next(pools)
            x = net.max_pool(x, size, 2, name)
        else:
            x = _inception(net, x, block)
            yield block.name, x


def _lrn(net: Layers, x, name: str):
    return x if net.variant.batch_norm else net.lrn(x, name)


def _inception(net: Layers, x, block: Inception):
    name = f"inception_{block.name}"
    reduce3 = net.conv(x, block.reduce3, 1, f"{name}_reduce3")
    reduce5 = net.conv(x, block.reduce5, 1, f"{name}_reduce5")
    pooled = net.max_pool(x, 3, 1, f"{name}_pool")
    branches = [
        net.conv(x, block.conv1, 1, f"{name}_conv1"),
        net.conv(reduce3, block.conv3, 3, f"{name}_conv3"),
        net.conv(reduce5, block.conv5, net.variant.conv5_kernel, f"{name}_conv5"),
        net.conv(pooled, block.pool_proj, 1, f"{name}_pool_proj"),
    ]
    return net.concat(branches, name)


def pool_padding(variant: Variant, side: int | None, size: int, stride: int) -> str:
    """`same`, or `valid` where the variant's windows are those of PyTorch and need no padding.

    PyTorch's depend on the side, which is None in a network for pictures of any size.
    """
    if not variant.torch_windows or stride == 1:
        return "same"
    assert side is not None
    # Where whole windows fill the side, SAME still adds one that begins before it.
    spare = side - size
    return "valid" if spare >= 0 and spare % stride == 0 else "same"


class _Builder:
    """Layers of one variant under one dtype policy, named so that weights can be found by name."""

    def __init__(self, variant: Variant, dtype: str, sync_batch_norm: bool = False) -> None:
        self.variant = variant
        self.dtype = dtype
        # The synchronized form is slower (not fused), so it is built only where asked for.
        self.batch_norm = BATCH_NORM | ({"synchronized": True} if sync_batch_norm else {})

    def conv(self, x, filters: int, kernel: int, name: str, stride: int = 1):
        """Convolution, batch normalisation where the variant has it, ReLU."""
        batch_norm = self.variant.batch_norm
        padding = "same"
        if self.variant.torch_windows and stride > 1:  # at stride 1 both pad alike
            x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad", dtype=self.dtype)(x)
            padding = "valid"
        x = layers.Conv2D(
            filters, kernel, stride, padding, use_bias=not batch_norm, name=name, dtype=self.dtype
        )(x)
        if batch_norm:
            x = layers.BatchNormalization(**self.batch_norm, name=f"{name}_bn", dtype=self.dtype)(x)
        return layers.ReLU(name=f"{name}_relu", dtype=self.dtype)(x)

    def max_pool(self, x, size: int, stride: int, name: str):
        padding = pool_padding(self.variant, x.shape[1], size, stride)
        return layers.MaxPooling2D(size, stride, padding, name=name, dtype=self.dtype)(x)

    def lrn(self, x, name: str):
        return LocalResponseNormalization(name=name, dtype=self.dtype)(x)

    def concat(self, branches, name: str):
        return layers.Concatenate(name=name, dtype=self.dtype)(branches)

    def auxiliary_head(self, x, classes: int, name: str):
        """Section 5 of the paper: pool to 4×4, 1×1 convolution, 1024 units, dropout 0.7, logits.

        5×5 windows with stride 3 make 4×4 of the paper's 14×14; other sizes get the windows that
        do the same, and below 4×4 nothing is pooled, save where the variant pools adaptively.
        """
        side = x.shape[1]
        if self.variant.torch_windows:
            x = AdaptiveAveragePooling(name=f"{name}_pool", dtype=self.dtype)(x)
        elif side > 4:
            stride = side // 4
            x = layers.AveragePooling2D(
                side - 3 * stride, stride, name=f"{name}_pool", dtype=self.dtype
            )(x)
        x = self.conv(x, 128, 1, f"{name}_conv")
        x = layers.Flatten(name=f"{name}_flatten", dtype=self.dtype)(x)
        x = layers.Dense(1024, "relu", name=f"{name}_fc", dtype=self.dtype)(x)
        x = Dropout(0.7, name=f"{name}_dropout", dtype=self.dtype)(x)
        return layers.Dense(classes, name=name, dtype="float32")(x)


def build(
    classes: int,
    image_size: int | None = 224,
    variant: str = "batch_norm",
    stem: str = "imagenet",
    auxiliary_heads: bool = False,
    dtype: str = "float32",
    dropout: float | None = None,
    sync_batch_norm: bool = False,
) -> keras.Model:
    """GoogLeNet as a tf-keras model.

    Args:
        classes: number of classes.
        image_size: side of the square input in pixels, at least 16; None for any, which neither
            the auxiliary heads nor variant torchvision allow.
        variant: a key of `VARIANTS`.
        stem: a key of `STEMS`.
        auxiliary_heads: add the two heads that help training; inference has no use for them.
        dtype: tf-keras dtype policy of the hidden layers, `float32` or `mixed_bfloat16`;
            weights and logits are float32 in both.
        dropout: before the classifier; None for the variant's own.
        sync_batch_norm: take batch statistics over all replicas.

    Returns:
        A model from uint8 pixels [N,S,S,3] to a dict of float32 tensors: `logits` [N,C],
        `embedding` [N,1024] (the average over the last block), and with auxiliary heads `aux1`
        and `aux2` [N,C].
    """
    form = VARIANTS[variant]
    net = _Builder(form, dtype, sync_batch_norm)
    pixels = keras.Input((image_size, image_size, 3), dtype=tf.uint8, name="pixels")
    # [-1, 1], in float32: bfloat16 has too few bits for 256 levels.
    x = layers.Rescaling(1 / 127.5, offset=-1, name="rescale", dtype="float32")(pixels)
    heads = {block: name for name, block in AUXILIARY_HEADS.items()}
    outputs = {}
    for name, output in blocks(net, x, stem):
        x = output
        if auxiliary_heads and name in heads:
            head = heads[name]
            outputs[head] = net.auxiliary_head(x, classes, head)
    x = layers.GlobalAveragePooling2D(name="average", dtype="float32")(x)
    outputs["embedding"] = x
    dropout = form.dropout if dropout is None else dropout
    x = Dropout(dropout, name="dropout", dtype="float32")(x)
    outputs["logits"] = layers.Dense(classes, name="logits", dtype="float32")(x)
    return keras.Model(pixels, outputs, name="googlenet")
