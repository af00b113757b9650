"""Random changes to training pictures.

All chance is drawn from the seed and a picture's position in the stream of training pictures, so
that a resumed or a shared run draws the same.
"""

import tensorflow as tf

from pipeline.config import Config

ASPECT_RATIOS = (3 / 4, 4 / 3)  # of crops: paper, section 6
ERASED_AREA = (0.02, 0.2)  # least and largest share of the picture that is blanked
ERASED_ASPECT = 3.0  # height to width of what is blanked: 1/3 to 3
GREY = 127  # what blanking leaves, about 0 to the network


def crop(shape: tf.Tensor, position: tf.Tensor, recipe: Config) -> tf.Tensor:
    """Choose a random part of a whole picture, as Inception networks are trained.

    Args:
        shape: int32 [H,W,C] of the picture.
        position: int64 [], of the picture in the stream.
        recipe: the least area kept.

    Returns:
        int32 [top,left,height,width].
    """
    whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        whole,
        seed=tf.stack([tf.constant(recipe.seed, tf.int64), position]),
        min_object_covered=0.0,
        aspect_ratio_range=ASPECT_RATIOS,
        area_range=(recipe.crop, 1.0),
    )
    return tf.concat([begin[:2], size[:2]], 0)


def augment(pixels: tf.Tensor, positions: tf.Tensor, recipe: Config) -> tf.Tensor:
    """Mirror, shift and blank each picture by chance.

    Args:
        pixels: uint8 [B,S,S,3].
        positions: int64 [B], of the pictures in the stream, all of one step.
        recipe: how much of it.

    Returns:
        uint8 [B,S,S,3].
    """
    step, rows = positions[0] // recipe.batch_size, positions % recipe.batch_size
    seed = tf.stack([tf.constant(recipe.seed, tf.int64), step])
    # Drawn for the whole step, of which a worker takes its rows.
    draws = tf.gather(tf.random.stateless_uniform((recipe.batch_size, 8), seed), rows)
    pixels = _mirrored(pixels, draws[:, 0])
    if recipe.shift:
        pixels = _shifted(pixels, draws[:, 1:3], recipe.shift)
    if recipe.erase:
        pixels = _erased(pixels, draws[:, 3:8], recipe.erase)
    return pixels


def _mirrored(pixels: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    # To mirror all and choose takes seven times as long.
    sides = tf.cast(draws < 0.5, tf.int32)
    kept, turned = tf.dynamic_partition(pixels, sides, 2)
    places = tf.dynamic_partition(tf.range(tf.size(sides)), sides, 2)
    return tf.ensure_shape(tf.dynamic_stitch(places, [kept, tf.reverse(turned, [2])]), pixels.shape)


def _shifted(pixels: tf.Tensor, draws: tf.Tensor, share: float) -> tf.Tensor:
    """Each picture moved by whole pixels; what enters mirrors what is there."""
    size = pixels.shape[1]
    farthest = round(share * size)
    moves = tf.floor(draws * (2 * farthest + 1)) - farthest
    one, zero = tf.ones_like(moves[:, 0]), tf.zeros_like(moves[:, 0])
    # Rows of a projective transformation that only translates.
    transforms = tf.stack([one, zero, moves[:, 0], zero, one, moves[:, 1], zero, zero], axis=1)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels,
        transforms=transforms,
        output_shape=(size, size),
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="REFLECT",
    )


def _erased(pixels: tf.Tensor, draws: tf.Tensor, probability: float) -> tf.Tensor:
    """A rectangle of some pictures blanked (Zhong et al., Random erasing, 2017)."""
    least, largest = ERASED_AREA
    area = least + (largest - least) * draws[:, 1]
    aspect = ERASED_ASPECT ** (2 * draws[:, 2] - 1)
    rows = _within(draws[:, 3], tf.sqrt(area * aspect), pixels.shape[1])
    columns = _within(draws[:, 4], tf.sqrt(area / aspect), pixels.shape[1])
    chosen = draws[:, 0] < probability
    blank = rows[:, :, tf.newaxis] & columns[:, tf.newaxis] & chosen[:, tf.newaxis, tf.newaxis]
    return tf.where(blank[..., tf.newaxis], tf.constant(GREY, tf.uint8), pixels)


def _within(centre: tf.Tensor, length: tf.Tensor, size: int) -> tf.Tensor:
    """Which of `size` pixels lie within a length around a centre, both as shares: bool [B,size]."""
    middles = (tf.range(size, dtype=tf.float32) + 0.5) / size
    return tf.abs(middles - centre[:, tf.newaxis]) < length[:, tf.newaxis] / 2
