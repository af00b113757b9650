import io
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from pipeline import preprocessing
from tests.conftest import ROOT, colour_image


def encoded(image: np.ndarray) -> bytes:
    return tf.io.encode_png(image).numpy()


def test_eager_in_tf_data_and_in_a_batch_are_equal_to_the_pixel():
    images = [colour_image("red", seed) for seed in range(6)]
    eager = np.stack([preprocessing.to_pixels(tf.constant(image), 24) for image in images])
    in_data = tf.data.Dataset.from_tensor_slices([encoded(image) for image in images]).map(
        lambda data: preprocessing.to_pixels(preprocessing.decode(data), 24)
    )
    batch, valid = tf.function(preprocessing.decode_batch)(
        tf.constant([encoded(image) for image in images]), 24
    )
    assert eager.dtype == np.uint8
    np.testing.assert_array_equal(np.stack(list(in_data.as_numpy_iterator())), eager)
    np.testing.assert_array_equal(batch, eager)
    assert valid.numpy().all()


def test_pictures_of_the_networks_size_pass_untouched():
    image = np.random.default_rng(1).integers(0, 256, (28, 28, 3), np.uint8)
    np.testing.assert_array_equal(preprocessing.to_pixels(tf.constant(image), 28), image)


def test_grey_becomes_three_equal_channels():
    grey = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28, 1)
    pixels = preprocessing.to_pixels(tf.constant(grey), 28).numpy()
    np.testing.assert_array_equal(pixels, np.repeat(grey, 3, axis=2))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "GIF"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_window_has_the_pixels_of_the_whole_picture(form, mode):
    noise = np.random.default_rng(1).integers(0, 256, (75, 99, 3), np.uint8)
    with io.BytesIO() as file:
        PIL.Image.fromarray(noise).convert(mode).save(file, form)
        data = tf.constant(file.getvalue())
    whole = preprocessing.decode(data).numpy()
    for top, left, height, width in ((0, 0, 75, 99), (13, 7, 20, 31), (40, 50, 35, 49)):
        part = preprocessing.decode(data, lambda _, p=(top, left, height, width): tf.constant(p))
        expected = whole[top : top + height, left : left + width]
        # A JPEG's colours are interpolated, at the window's edge without what lies outside.
        np.testing.assert_array_equal(part[1:-1, 1:-1], expected[1:-1, 1:-1])
        assert part.shape == expected.shape


def test_a_window_is_chosen_by_the_pictures_shape():
    shapes = []

    def right_half(shape):
        shapes.append(shape.numpy().tolist())
        return tf.stack([0, shape[1] // 2, shape[0], shape[1] // 2])

    for encode in (tf.io.encode_jpeg, tf.io.encode_png):
        data = encode(tf.zeros((30, 40, 3), tf.uint8))
        assert preprocessing.decode(data, right_half).shape == (30, 20, 3)
    assert shapes == [[30, 40, 3]] * 2


def test_shrinking_averages():
    checkers = np.indices((64, 64)).sum(0)[..., np.newaxis] % 2 * 255
    image = tf.constant(np.repeat(checkers, 3, axis=2), tf.uint8)
    inner = preprocessing.to_pixels(image, 16).numpy()[2:-2, 2:-2]
    assert inner.min() > 110
    assert inner.max() < 145


@pytest.mark.parametrize("encode", [tf.io.encode_jpeg, tf.io.encode_png])
def test_a_bad_image_stays_in_its_row(encode):
    good = [encode(colour_image("blue", seed)).numpy() for seed in range(4)]
    bad = [b"", b"junk", good[0][:30]]
    rows = [good[0], bad[0], good[1], bad[1], bad[2], good[2], good[3]]
    pixels, valid = preprocessing.decode_batch(tf.constant(rows), 32)
    alone, _ = preprocessing.decode_batch(tf.constant(good), 32)
    assert valid.numpy().tolist() == [True, False, True, False, False, True, True]
    np.testing.assert_array_equal(pixels.numpy()[valid.numpy()], alone)
    assert not pixels.numpy()[~valid.numpy()].any()


def test_only_bad_images_and_no_images_at_all():
    pixels, valid = preprocessing.decode_batch(tf.constant([b"x", b"y"]), 16)
    assert pixels.shape == (2, 16, 16, 3)
    assert not valid.numpy().any()
    pixels, valid = preprocessing.decode_batch(tf.constant([], tf.string), 16)
    assert pixels.shape == (0, 16, 16, 3)
    assert valid.shape == (0,)


def test_gif_gives_its_first_frame_and_bmp_is_read():
    red, blue = (PIL.Image.new("RGB", (4, 3), colour) for colour in ("red", "blue"))
    for kind, options in (("GIF", {"save_all": True, "append_images": [blue]}), ("BMP", {})):
        file = io.BytesIO()
        red.save(file, kind, **options)
        image = preprocessing.decode(tf.constant(file.getvalue())).numpy()
        assert image.shape == (3, 4, 3)
        assert (image == [255, 0, 0]).all()


def claiming(kind: str, height: int, width: int) -> bytes:
    """A small picture whose header claims another size."""
    picture = tf.constant(np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3))
    if kind == "jpeg":
        data = bytearray(tf.io.encode_jpeg(picture).numpy())
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", height, width)
        return bytes(data)
    if kind == "png":
        data = bytearray(tf.io.encode_png(picture).numpy())
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        return bytes(data)
    file = io.BytesIO()
    PIL.Image.fromarray(picture.numpy()).save(file, kind)
    data = bytearray(file.getvalue())
    if kind == "gif":
        data[6:10] = struct.pack("<HH", width, height)
        place = data.index(b"\x2c", 13 + 3 * 2 ** ((data[10] & 7) + 1)) + 5
        data[place : place + 4] = struct.pack("<HH", width, height)
    else:
        data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


KINDS = ("jpeg", "png", "gif", "bmp")


@pytest.mark.parametrize("kind", KINDS)
def test_headers_name_the_size(kind):
    for height, width in ((6, 5), (700, 300), (30_000, 30_000)):
        data = tf.constant(claiming(kind, height, width))
        assert preprocessing.pixels_by_header(data) == height * width
    assert preprocessing.pixels_by_header(tf.constant(b"junk")) == 0
    assert preprocessing.pixels_by_header(tf.constant(b"")) == 0
    with pytest.raises(tf.errors.InvalidArgumentError):
        preprocessing.pixels_by_header(tf.constant(claiming(kind, 6, 5)[:9]))


def test_rows_from_the_top_down_have_a_size_too():
    assert preprocessing.pixels_by_header(tf.constant(claiming("bmp", -6, 5))) == 30


def test_hostile_headers_are_refused_without_memory_and_spoil_no_other():
    """In a process of its own, whose peak memory is told."""
    images = [claiming(kind, 6, 5) for kind in KINDS]
    hostile = [claiming(kind, 30_000, 30_000) for kind in KINDS]
    hostile += [claiming("bmp", -30_000, 30_000), claiming("png", 2**31 - 1, 2**31 - 1)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.decode_peak"],
        input=pickle.dumps((images, hostile)), capture_output=True, timeout=120, cwd=ROOT,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    valid, same, grown = pickle.loads(done.stdout)
    assert valid == [True, False] * len(images) + [False] * (len(hostile) - len(images))
    assert same
    assert grown < 64 << 20  # 30,000×30,000 pixels are 2.7 GB
