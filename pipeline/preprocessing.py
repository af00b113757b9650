"""Pictures -> the network's input. One path for training, evaluation and the exported graph.

The network reads uint8 pixels [N,S,S,3] and scales them itself, so that what is compared between
stages, and what is cached and sent, is whole numbers: equal or not, never nearly.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

import tensorflow as tf

from pipeline import image_header

WIDE = 4  # more than so many times as wide as high


def to_pixels(images: tf.Tensor, size: int) -> tf.Tensor:
    """Bring pictures to the network's size; the whole picture, its aspect ratio not kept.

    Squeezing rather than cropping loses nothing at the edges; Inception networks are trained with
    varying aspect ratios (paper, section 6) and bear it.

    Args:
        images: uint8 [H,W,C] or [N,H,W,C], any H and W; C is 1 (grey) or 3 (RGB).
        size: S, the side wanted.

    Returns:
        uint8 [S,S,3] or [N,S,S,3]: bilinear, antialiased when shrinking, rounded.
    """
    if images.shape[-1] == 1:
        images = tf.image.grayscale_to_rgb(images)
    if images.shape[-3:-1] == (size, size):
        return images
    if images.shape.rank == 3:
        return _resized(images[tf.newaxis], size)[0]
    return _resized(images, size)


def _resized(images: tf.Tensor, size: int) -> tf.Tensor:
    """As `tf.image.resize` with `antialias`, for less: uint8 [N,H,W,3] to [N,S,S,3].

    TensorFlow's operation has vector instructions for rows, and none for columns. So each side is
    resized as rows of pictures one pixel wide: the height first, as TensorFlow does, but for a
    picture that is `WIDE`, since what lies between the two is `size` times the other side.
    """
    height, width = tf.unstack(tf.shape(images)[1:3])
    upright, lying = tf.constant([0, 1, 2, 3]), tf.constant([0, 2, 1, 3])
    wide = width > WIDE * height
    first, last = tf.where(wide, lying, upright), tf.where(wide, upright, lying)
    once = _with_rows(tf.transpose(images, first), size)
    twice = _with_rows(tf.transpose(once, lying), size)
    pixels = tf.cast(tf.round(tf.transpose(twice, last)), tf.uint8)
    return tf.ensure_shape(pixels, (None, size, size, 3))


def _with_rows(images: tf.Tensor, rows: int) -> tf.Tensor:
    """Resize the first side alone: [N,H,W,3] to float32 [N,rows,W,3]."""
    number, height, width, channels = tf.unstack(tf.shape(images))
    resized = tf.raw_ops.ScaleAndTranslate(
        images=tf.reshape(images, (number, height, 1, width * channels)),
        size=(rows, 1),
        scale=(rows / tf.cast(height, tf.float32), 1.0),
        translation=(0.0, 0.0),
        kernel_type="triangle",
        antialias=True,
    )
    return tf.reshape(resized, (number, rows, width, channels))


MAX_PIXELS = 25_000_000  # of an encoded picture: 75 MB decoded; the screens of 2026 have 20 million
MAX_JPEG_PIXELS = (
    64_000_000  # cameras reach 50 million; those are decoded at an eighth of their sides
)
MAX_SCANS = 100  # of a progressive JPEG, each of which costs a pass over all of it
USUAL_SCANS = 10  # that a picture of the most pixels may have; of more, in proportion fewer pixels
MAX_GIF_BYTES = 2**23  # to the end of the first frame; looking for it costs 30 times as much
# Of a PNG: each may be a thousand times as long as in the file, and is unpacked with the picture.
# In 100 MB of a picture, chance puts more than 8 with a likelihood of 4e-18.
MAX_TEXTS = 8
REDUCED_SIDE = 512  # no side of a JPEG is decoded to less than that, if it has more

# From a picture's shape, int32 [H,W,C], the part of it wanted: int32 [top,left,height,width].
Window = Callable[[tf.Tensor], tf.Tensor]


def decode(image_bytes: tf.Tensor, window: Window | None = None) -> tf.Tensor:
    """Decode one JPEG, PNG, GIF (first frame) or BMP: string [] to uint8 [H,W,3].

    A large JPEG is decoded at a half, a quarter or an eighth of its sides, as long as both keep
    `REDUCED_SIDE`, which costs a fraction of the time and the memory.

    Args:
        image_bytes: the encoded picture.
        window: the part of it that is wanted. Of a JPEG only that part is decoded, to the same
            pixels but for the colours at its edge, in a third of the time for a random crop; it
            is not reduced.

    Raises:
        tf.errors.InvalidArgumentError: when run on bytes that are none of these, or on a picture
            that is over one of the limits above by its header; nothing is allocated for it then.
    """
    image = tf.cond(
        tf.io.is_jpeg(image_bytes),
        lambda: _decode_jpeg(image_bytes, window),
        lambda: cut(_decode_other(image_bytes), window),
    )
    image.set_shape((None, None, 3))
    return image


def _decode_jpeg(image_bytes: tf.Tensor, window: Window | None) -> tf.Tensor:
    limits = f"the JPEG has more than {MAX_SCANS} scans: save it anew"
    scans = _scans(image_bytes)
    with _asserted(scans <= MAX_SCANS, limits):
        return _decode_usual_jpeg(tf.identity(image_bytes), scans, window)


def _scans(jpeg: tf.Tensor) -> tf.Tensor:
    return image_header.scans(jpeg, MAX_SCANS + 1)


def _decode_usual_jpeg(
    image_bytes: tf.Tensor, scans: tf.Tensor, window: Window | None
) -> tf.Tensor:
    """One that has no more than `MAX_SCANS`."""
    shape = tf.io.extract_jpeg_shape(image_bytes)
    sides = shape[:2]
    pixels = tf.reduce_prod(tf.cast(sides, tf.int64))
    limits = f"the JPEG has more than {MAX_JPEG_PIXELS:,} pixels, or too many scans: shrink it"
    passes = tf.maximum(scans, USUAL_SCANS)
    with _asserted(pixels * passes <= MAX_JPEG_PIXELS * USUAL_SCANS, limits):
        image_bytes = tf.identity(image_bytes)
    if window:
        return tf.io.decode_and_crop_jpeg(image_bytes, window(shape), channels=3)
    halvings = tf.raw_ops.Bucketize(
        input=tf.reduce_min(sides), boundaries=[REDUCED_SIDE * ratio for ratio in (2, 4, 8)]
    )
    decoders = [
        functools.partial(tf.io.decode_jpeg, image_bytes, channels=3, ratio=ratio)
        for ratio in (1, 2, 4, 8)
    ]
    return tf.switch_case(halvings, decoders)


def _decode_other(image_bytes: tf.Tensor) -> tf.Tensor:
    limits = f"the picture is no JPEG, PNG, GIF or BMP of up to {MAX_PIXELS:,} pixels: convert it"
    pixels = image_header.pixels(image_bytes)
    with _asserted((pixels > 0) & (pixels <= MAX_PIXELS), limits):
        image_bytes = tf.identity(image_bytes)

    def one_frame() -> tf.Tensor:
        begin = tf.strings.substr(image_bytes, 0, MAX_GIF_BYTES)
        frame, pixels = image_header.first_frame(begin)
        with _asserted(pixels <= MAX_PIXELS, limits):
            return tf.identity(frame)

    def few_texts() -> tf.Tensor:
        limits = f"the PNG has more than {MAX_TEXTS} texts (zTXt, iTXt): save it without"
        with _asserted(image_header.texts(image_bytes, MAX_TEXTS + 1) <= MAX_TEXTS, limits):
            return tf.identity(image_bytes)

    first = tf.strings.substr(image_bytes, 0, 2)
    image_bytes = tf.case(
        [(first == b"GI", one_frame), (first == b"\x89P", few_texts)], default=lambda: image_bytes
    )
    return tf.io.decode_image(image_bytes, channels=3, expand_animations=False)


def _asserted(condition: tf.Tensor, message: str) -> AbstractContextManager:
    """A block whose tensors are computed only if a condition holds.

    `tf.debugging.Assert` would put its message into a branch, which costs more than the message.
    """
    check = tf.raw_ops.Assert(condition=condition, data=[tf.constant(message)])
    return tf.control_dependencies([check] if check is not None else [])


def cut(image: tf.Tensor, window: Window | None) -> tf.Tensor:
    """The part of a decoded picture that is wanted: [H,W,C] to [h,w,C]."""
    if window is None:
        return image
    top, left, height, width = tf.unstack(window(tf.shape(image)))
    return image[top : top + height, left : left + width]


def decode_batch(
    records: tf.Tensor, size: int, extract: Callable[[tf.Tensor], tf.Tensor] = tf.identity
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decode and resize a batch in which any image may be broken.

    A graph has no try and except, and a decode error would fail the whole batch, into which a
    server merges the requests of different users. `tf.data` inside the graph can drop the
    elements that fail; the rest are put back in their rows by index.

    Args:
        records: string [N], encoded images.
        size: S, the side wanted.
        extract: where a record holds an encoded image, takes it out: string [] to string [].

    Returns:
        uint8 [N,S,S,3] with zeros where decoding failed, and bool [N], true where it succeeded.
    """

    def open_any(record: tf.Tensor) -> tf.Tensor:
        return decode(extract(record))

    images, valid = tf.cond(
        tf.size(records) == 1,
        lambda: _decode_one(records[0], open_any, size),
        lambda: _decode_many(records, open_any, size),
    )
    return tf.ensure_shape(images, (None, size, size, 3)), tf.ensure_shape(valid, (None,))


Decoder = Callable[[tf.Tensor], tf.Tensor]  # string [] to uint8 [H,W,3]


def _decode_one(record: tf.Tensor, decoder: Decoder, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """A batch of one, without what it costs to work in parallel and to put back into rows.

    What `tf.data` is to do is set up for every batch, which takes longer the more there is of it,
    even if it is not used. So there is little of it for the usual JPEG.
    """

    def opened(decoder: Decoder) -> tuple[tf.Tensor, tf.Tensor]:
        decoded = tf.data.Dataset.from_tensors(record).map(lambda record: (decoder(record), True))
        nothing = tf.data.Dataset.from_tensors((tf.zeros((1, 1, 3), tf.uint8), False))
        return decoded.ignore_errors().concatenate(nothing).take(1).get_single_element()

    scans = _scans(record)
    picture, valid = tf.cond(
        tf.io.is_jpeg(record) & (scans <= MAX_SCANS),
        lambda: opened(lambda record: _decode_usual_jpeg(record, scans, None)),
        lambda: opened(decoder),
    )
    picture.set_shape((None, None, 3))
    return to_pixels(picture, size)[tf.newaxis], valid[tf.newaxis]


def _decode_many(records: tf.Tensor, decoder: Decoder, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    count = tf.size(records, out_type=tf.int64)
    decoded = (
        tf.data.Dataset.from_tensor_slices((tf.range(count), records))
        .map(
            lambda row, record: (row, to_pixels(decoder(record), size)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .ignore_errors()
        .batch(tf.maximum(count, 1))
    )
    # Comes where there is no other, and goes into a row after the last.
    nothing = (tf.fill([1], count), tf.zeros((1, size, size, 3), tf.uint8))
    whole = decoded.concatenate(tf.data.Dataset.from_tensors(nothing))
    rows, pixels = whole.take(1).get_single_element()

    def put_back() -> tuple[tf.Tensor, tf.Tensor]:
        images = tf.scatter_nd(rows[:, tf.newaxis], pixels, tf.stack([count + 1, size, size, 3]))
        return images[:-1], tf.reduce_any(tf.range(count)[:, tf.newaxis] == rows, axis=1)

    def as_they_are() -> tuple[tf.Tensor, tf.Tensor]:
        return pixels, tf.ones_like(rows, tf.bool)

    complete = (tf.size(rows, out_type=tf.int64) == count) & (rows[0] < count)
    return tf.cond(complete, as_they_are, put_back)
