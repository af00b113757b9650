import numpy as np
import pytest
import tensorflow as tf

from pipeline import augment, config

POSITIONS = tf.range(64, dtype=tf.int64)


def recipe(**fields) -> config.Config:
    return config.from_preset("demo", batch_size=64, image_size=32, **fields)


def pictures() -> np.ndarray:
    """64 different pictures: uint8 [64,32,32,3]."""
    return np.random.default_rng(1).integers(0, 255, (64, 32, 32, 3), np.uint8)


def test_about_half_are_mirrored_and_nothing_else_happens():
    before = pictures()
    after = augment.augment(tf.constant(before), POSITIONS, recipe(shift=0.0)).numpy()
    mirrored = [(a == b[:, ::-1]).all() for a, b in zip(after, before, strict=True)]
    same = [(a == b).all() for a, b in zip(after, before, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 16 <= sum(mirrored) <= 48


def test_shifts_are_whole_pixels_in_every_direction_and_within_bounds():
    column, row = np.meshgrid(np.arange(32), np.arange(32))
    picture = np.stack([row, column, np.zeros_like(row)], axis=-1).astype(np.uint8)
    before = np.repeat(picture[np.newaxis], 64, axis=0)
    after = augment._shifted(
        tf.constant(before), tf.random.stateless_uniform((64, 2), (1, 2)), 0.125
    ).numpy()
    moves = {tuple(int(x) for x in (a - before[0]).astype(np.int8)[16, 16, :2]) for a in after}
    assert {abs(x) for move in moves for x in move} == {0, 1, 2, 3, 4}
    for a in after:
        down, right = (a[16, 16, :2].astype(int) - 16).tolist()
        inner = slice(4, 28)
        assert (a[inner, inner, 0] == row[inner, inner] + down).all()
        assert (a[inner, inner, 1] == column[inner, inner] + right).all()


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_a_share_of_pictures_loses_a_rectangle(probability):
    before = np.full((64, 32, 32, 3), 255, np.uint8)
    after = augment.augment(
        tf.constant(before), POSITIONS, recipe(shift=0.0, erase=probability)
    ).numpy()
    blank = (after == augment.GREY).all(-1)
    erased = blank.any((1, 2)).mean()
    assert abs(erased - probability) < 0.2
    for mask in blank[blank.any((1, 2))]:
        rows, columns = mask.any(1), mask.any(0)
        assert (mask == rows[:, np.newaxis] & columns).all()
        assert mask.mean() <= 0.25
    assert (after[~blank] == 255).all()


def test_chance_is_that_of_the_position_and_the_seed():
    before = tf.constant(pictures())
    every = recipe(shift=0.125, erase=0.5)
    first = augment.augment(before, POSITIONS, every)
    np.testing.assert_array_equal(first, augment.augment(before, POSITIONS, every))
    for other in (
        augment.augment(before, POSITIONS + 64, every),
        augment.augment(before, POSITIONS, recipe(shift=0.125, erase=0.5, seed=2)),
    ):
        assert (first.numpy() != other.numpy()).any()
    # A worker's share of the rows gets the chance of those rows.
    share = augment.augment(before[1::2], POSITIONS[1::2], every)
    np.testing.assert_array_equal(share, first[1::2])


def test_crops_keep_the_area_and_the_aspect_asked_for():
    shape = tf.constant([300, 400, 3])
    parts = [
        augment.crop(shape, tf.constant(i, tf.int64), recipe(crop=0.08)).numpy() for i in range(200)
    ]
    tops, lefts, heights, widths = np.transpose(parts)
    assert (np.minimum(tops, lefts) >= 0).all()
    assert (tops + heights <= 300).all()
    assert (lefts + widths <= 400).all()
    areas, aspects = heights * widths / (300 * 400), widths / heights
    assert areas.min() >= 0.079
    assert areas.min() < 0.15
    assert areas.max() > 0.8
    assert (aspects > 0.73).all()
    assert (aspects < 1.36).all()
