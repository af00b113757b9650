import io

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from pipeline import image_header
from tests.pipeline import hostile
from tests.pipeline.hostile import claiming


@pytest.mark.parametrize("kind", ["png", "gif", "bmp"])
def test_headers_name_the_size(kind):
    for height, width in ((6, 5), (700, 300), (30_000, 30_000)):
        data = tf.constant(claiming(kind, height, width))
        assert image_header.pixels(data) == height * width
    assert image_header.pixels(tf.constant(b"junk")) == 0
    assert image_header.pixels(tf.constant(b"")) == 0
    with pytest.raises(tf.errors.InvalidArgumentError):
        image_header.pixels(tf.constant(claiming(kind, 6, 5)[:9]))


def test_rows_from_the_top_down_have_a_size_too():
    assert image_header.pixels(tf.constant(claiming("bmp", -6, 5))) == 30


def test_scans_are_counted():
    assert image_header.scans(tf.constant(claiming("jpeg", 6, 5)), 9) == 1
    for count in (10, 100, 5000):
        assert image_header.scans(tf.constant(hostile.many_scans(count)), 101) == min(count, 101)
    assert image_header.scans(tf.constant(b""), 9) == 0


def test_texts_are_counted():
    kinds = (b"zTXt", b"iTXt")
    for texts in (0, 3, 8, 9):
        assert image_header.texts(tf.constant(hostile.many_texts(texts, kinds)), 9) == texts
        assert image_header.texts(tf.constant(hostile.many_texts(texts)), 9) == texts
    assert image_header.texts(tf.constant(hostile.many_texts(40)), 9) == 9
    assert image_header.texts(tf.constant(b"TXt" * 40), 9) == 0
    assert image_header.texts(tf.constant(b""), 9) == 0


def frames(count: int, **options) -> bytes:
    random = np.random.default_rng(1)
    pictures = [
        PIL.Image.fromarray(random.integers(0, 256, (60, 67, 3), np.uint8)) for _ in range(count)
    ]
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "gif",
    [frames(1), frames(3, comment=b"x" * 700), frames(20, loop=0, duration=20), hostile.gif_bomb()],
)
def test_the_first_frame_is_cut_out(gif):
    frame, pixels = image_header.first_frame(tf.constant(gif))
    with PIL.Image.open(io.BytesIO(frame.numpy())) as cut, PIL.Image.open(io.BytesIO(gif)) as whole:
        assert cut.n_frames == 1
        assert whole.width * whole.height == pixels
        np.testing.assert_array_equal(cut.convert("RGB"), whole.convert("RGB"))


def test_a_frame_has_a_size_of_its_own():
    assert image_header.first_frame(tf.constant(hostile.large_frame()))[1] == 30_000**2


def test_a_gif_cut_short_anywhere_raises_or_gives_something():
    gif = claiming("gif", 6, 5)
    first_frame = tf.function(image_header.first_frame)
    for length in range(len(gif)):
        try:
            frame, _ = first_frame(tf.constant(gif[:length]))
            assert gif.startswith(frame.numpy()[:-1])
        except tf.errors.InvalidArgumentError:
            continue


@pytest.mark.timeout(60)
@pytest.mark.parametrize("block", [b"\x21\xfe\x00", b"\x21\xfe\x01\x00\x00", b"\x01\x00"])
def test_a_gif_of_tiny_blocks_takes_no_time(block):
    gif = frames(1)
    begin = gif.index(b"\x2c\0\0\0\0")
    long = gif[:begin] + (block * 500_000 if block[0] == 0x21 else b"") + gif[begin:]
    if block[0] != 0x21:
        long = gif[: begin + 11] + block[:1] * 1_000_000 + gif[begin + 11 :]
    _, pixels = image_header.first_frame(tf.constant(long))
    assert pixels == 60 * 67
