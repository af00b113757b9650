import io
import pickle
import struct
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from pipeline import preprocessing
from tests.conftest import ROOT, colour_image
from tests.pipeline import hostile


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


@pytest.mark.parametrize(
    ("height", "width", "most"), [(90, 60, 0), (60, 60, 0), (17, 300, 1), (300, 17, 0), (5, 9, 0)]
)
def test_resizing_is_tensorflows(height, width, most):
    """To the bit; of very wide ones, whose sides are taken in the other order, a level at most."""
    images = np.random.default_rng(1).integers(0, 256, (3, height, width, 3), np.uint8)
    expected = tf.round(tf.image.resize(images, (24, 24), antialias=True)).numpy()
    together = preprocessing.to_pixels(tf.constant(images), 24).numpy()
    assert np.abs(together - expected).max() <= most
    alone = [preprocessing.to_pixels(tf.constant(image), 24) for image in images]
    np.testing.assert_array_equal(together, alone)


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


def test_no_more_of_a_gif_is_read_than_its_limit(monkeypatch):
    noise = [PIL.Image.fromarray(colour_image("red", seed)) for seed in range(9)]
    gif = saved(noise[0], "GIF", save_all=True, append_images=noise[1:])
    first = preprocessing.decode(tf.constant(gif)).numpy()
    monkeypatch.setattr(preprocessing, "MAX_GIF_BYTES", len(gif) // 2)
    np.testing.assert_array_equal(preprocessing.decode(tf.constant(gif)), first)
    monkeypatch.setattr(preprocessing, "MAX_GIF_BYTES", len(gif) // 20)
    with pytest.raises(tf.errors.InvalidArgumentError):
        preprocessing.decode(tf.constant(gif))


def test_hostile_pictures_take_no_memory_and_spoil_no_other():
    """In a process of its own, whose peak memory is told."""
    images = [*(hostile.claiming(kind, 6, 5) for kind in hostile.KINDS), hostile.gif_bomb()]
    refused, narrow = hostile.refused(), hostile.narrow()
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.decode_peak"],
        input=pickle.dumps((images, refused + narrow)), capture_output=True, timeout=120, cwd=ROOT,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    valid, same, grown = pickle.loads(done.stdout)
    assert valid == (
        [True, False] * len(images) + [False] * (len(refused) - len(images)) + [True] * len(narrow)
    )
    assert same
    # 30,000×30,000 pixels are 2.7 GB, the GIF's second frame 100 MB, a narrow one's 5 million
    # pixels 15 MB, and 380 MB of floats where its shorter side is resized first.
    assert grown < 64 << 20


def saved(image: PIL.Image.Image, form: str, **options) -> bytes:
    with io.BytesIO() as file:
        image.save(file, form, **options)
        return file.getvalue()


def decoded(data: bytes) -> np.ndarray:
    """As `decode` does it; a batch must agree, alone and with others."""
    picture = preprocessing.decode(tf.constant(data)).numpy()
    expected = preprocessing.to_pixels(tf.constant(picture), 24).numpy()
    for rows in ([data], [data, b"junk", data]):
        pixels, valid = preprocessing.decode_batch(tf.constant(rows), 24)
        assert valid.numpy().tolist() == [row == data for row in rows]
        np.testing.assert_array_equal(pixels[0], expected)
        np.testing.assert_array_equal(pixels[-1], expected)
    return picture


def seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


@pytest.mark.parametrize("kinds", [(b"zTXt",), (b"iTXt",), (b"zTXt", b"iTXt")])
def test_a_png_of_many_texts_is_refused_before_they_are_unpacked(kinds):
    bad, good = hostile.many_texts(200, kinds), hostile.claiming("png", 6, 5)
    decode = tf.function(lambda rows: preprocessing.decode_batch(rows, 24))
    unpacking = seconds(lambda: tf.io.decode_png(bad))
    for rows in ([bad], [good, bad, good]):
        decode(tf.constant([good] * len(rows)))  # makes the graph
        assert seconds(lambda rows=rows: decode(tf.constant(rows))) < unpacking / 3
        assert decode(tf.constant(rows))[1].numpy().tolist() == [row == good for row in rows]


@pytest.mark.parametrize("kinds", [(b"zTXt",), (b"iTXt",), (b"zTXt", b"iTXt")])
def test_a_png_of_a_few_texts_is_decoded(kinds):
    plain = decoded(hostile.many_texts(0))
    np.testing.assert_array_equal(decoded(hostile.many_texts(8, kinds)), plain)
    with pytest.raises(tf.errors.InvalidArgumentError):
        preprocessing.decode(tf.constant(hostile.many_texts(9, kinds)))


@pytest.mark.parametrize("form", ["BMP", "JPEG", "GIF"])
def test_the_names_of_texts_mean_nothing_in_other_files(form):
    names = np.frombuffer(b"zTXtiTXt" * 300, np.uint8).reshape(40, 60)
    options = {} if form == "BMP" else {"comment": b"zTXtiTXt" * 30}
    data = saved(PIL.Image.fromarray(names), form, **options)
    assert data.count(b"zTXtiTXt") >= 30
    assert decoded(data).shape == (40, 60, 3)


@pytest.fixture
def picture() -> PIL.Image.Image:
    return PIL.Image.fromarray(
        tf.image.resize(colour_image("red", 1), (40, 60)).numpy().astype("u1")
    )


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        ("PNG", "L"),
        ("PNG", "P"),
        ("PNG", "1"),
        ("BMP", "L"),
        ("GIF", "L"),
        ("GIF", "P"),
    ],
)
def test_grey_and_palettes_become_rgb(picture, form, mode):
    image = picture.convert(mode)
    np.testing.assert_array_equal(decoded(saved(image, form)), image.convert("RGB"))


def test_a_palette_of_a_bmp_is_not_read(picture):
    image = picture.convert("P")
    np.testing.assert_array_equal(decoded(saved(image, "BMP"))[..., 0], np.array(image))


def test_a_grey_jpeg_has_three_equal_channels(picture):
    pixels = decoded(saved(picture.convert("L"), "JPEG"))
    assert pixels.shape == (40, 60, 3)
    assert (pixels == pixels[..., :1]).all()


def test_a_cmyk_jpeg_has_the_colours_it_is_seen_in(picture):
    smooth = picture.resize((6, 4)).resize((60, 40))
    difference = decoded(saved(smooth.convert("CMYK"), "JPEG", quality=95)) - np.array(smooth, int)
    assert np.abs(difference).mean() < 3


def test_of_16_bits_the_upper_8_are_taken():
    deep = np.random.default_rng(1).integers(0, 65_536, (40, 60), np.uint16)
    pixels = decoded(saved(PIL.Image.fromarray(deep), "PNG"))
    np.testing.assert_array_equal(pixels, np.repeat((deep >> 8)[..., np.newaxis], 3, axis=2))


def test_transparency_is_dropped_and_not_blended(picture):
    seen_through = picture.copy()
    seen_through.putalpha(10)
    np.testing.assert_array_equal(decoded(saved(seen_through, "PNG")), picture)


def test_of_an_animation_the_first_frame_is_taken(picture):
    frames = [picture.convert("P"), picture.convert("L"), PIL.Image.new("RGB", (60, 40), "blue")]
    for form in ("GIF", "PNG"):
        first = frames[0] if form == "GIF" else frames[0].convert("RGB")
        data = saved(first, form, save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(decoded(data), frames[0].convert("RGB"))


def test_a_frame_smaller_than_its_screen_is_taken_alone(picture):
    image = picture.convert("P")
    data = bytearray(saved(image, "GIF"))
    data[6:10] = struct.pack("<HH", 200, 100)
    place = data.index(b"\x2c", 13 + 3 * 2 ** ((data[10] & 7) + 1)) + 1
    data[place : place + 4] = struct.pack("<HH", 90, 30)
    np.testing.assert_array_equal(decoded(bytes(data)), image.convert("RGB"))


def test_a_bmp_of_one_bit_or_with_bytes_after_it_is_refused(picture):
    plain, bits = saved(picture, "BMP"), saved(picture.convert("1"), "BMP")
    np.testing.assert_array_equal(decoded(plain), picture)
    for data in (bits, plain + b"\0", plain + bytes(4)):
        with pytest.raises(tf.errors.InvalidArgumentError):
            preprocessing.decode(tf.constant(data))


def test_exif_does_not_turn_the_picture(picture):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    np.testing.assert_array_equal(
        decoded(saved(picture, "JPEG", exif=exif)), decoded(saved(picture, "JPEG"))
    )


@pytest.mark.parametrize("options", [{"progressive": True}, {"optimize": True, "subsampling": 0}])
def test_other_kinds_of_jpeg(picture, options):
    pixels = decoded(saved(picture, "JPEG", quality=95, **options)).astype(int)
    assert np.abs(pixels - np.array(picture, int)).mean() < 20


def test_a_format_that_is_not_known_is_refused(picture):
    for form in ("WEBP", "TIFF"):
        with pytest.raises(tf.errors.InvalidArgumentError):
            preprocessing.decode(tf.constant(saved(picture, form)))


@pytest.mark.parametrize(
    ("height", "width", "ratio"),
    [(1023, 1500, 1), (1024, 1500, 2), (3000, 1025, 2), (2100, 2500, 4), (4096, 4200, 8)],
)
def test_a_large_jpeg_is_reduced(picture, height, width, ratio):
    data = saved(picture.resize((width, height)), "JPEG")
    pixels = preprocessing.decode(tf.constant(data)).numpy()
    assert pixels.shape == (-(-height // ratio), -(-width // ratio), 3)
    assert min(pixels.shape[:2]) >= preprocessing.REDUCED_SIDE
    np.testing.assert_array_equal(pixels, tf.io.decode_jpeg(data, channels=3, ratio=ratio))
    whole = preprocessing.to_pixels(tf.io.decode_jpeg(data, channels=3), 64).numpy().astype(int)
    assert np.abs(preprocessing.to_pixels(tf.constant(pixels), 64).numpy() - whole).max() <= 4
