"""Pictures -> the network's input. One path for training, evaluation and the exported graph.

The network reads uint8 pixels [N,S,S,3] and scales them itself, so that what is compared between
stages, and what is cached and sent, is whole numbers: equal or not, never nearly.
"""

from collections.abc import Callable

import tensorflow as tf


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
    resized = tf.image.resize(images, (size, size), antialias=True)
    return tf.cast(tf.round(resized), tf.uint8)


MAX_PIXELS = 64_000_000  # of an encoded picture: 192 MB decoded; cameras reach 50 million
HEADER_BYTES = 26  # in which PNG, GIF and BMP name their size

# From a picture's shape, int32 [H,W,C], the part of it wanted: int32 [top,left,height,width].
Window = Callable[[tf.Tensor], tf.Tensor]


def decode(image_bytes: tf.Tensor, window: Window | None = None) -> tf.Tensor:
    """Decode one JPEG, PNG, GIF (first frame) or BMP: string [] to uint8 [H,W,3].

    Args:
        image_bytes: the encoded picture.
        window: the part of it that is wanted. Of a JPEG only that part is decoded, to the same
            pixels but for the colours at its edge, in a third of the time for a random crop.

    Raises:
        tf.errors.InvalidArgumentError: when run on bytes that are none of these, or on a picture
            that has more than `MAX_PIXELS` by its header; nothing is allocated for it then.
    """
    limit = tf.debugging.assert_less_equal(
        pixels_by_header(image_bytes),
        tf.constant(MAX_PIXELS, tf.int64),
        f"the picture has more than {MAX_PIXELS:,} pixels: shrink it",
    )
    with tf.control_dependencies([limit] if limit is not None else []):
        image_bytes = tf.identity(image_bytes)

    def whole() -> tf.Tensor:
        image = tf.io.decode_image(image_bytes, channels=3, expand_animations=False)
        image.set_shape((None, None, 3))
        return image

    if window is None:
        return whole()

    def part_of_jpeg() -> tf.Tensor:
        part = window(tf.io.extract_jpeg_shape(image_bytes))
        return tf.io.decode_and_crop_jpeg(image_bytes, part, channels=3)

    image = tf.cond(tf.io.is_jpeg(image_bytes), part_of_jpeg, lambda: cut(whole(), window))
    image.set_shape((None, None, 3))
    return image


def pixels_by_header(image_bytes: tf.Tensor) -> tf.Tensor:
    """Height × width as a picture's first bytes name them: string [] to int64 [].

    0 for what is no JPEG, PNG, GIF or BMP. A GIF's size is that of its screen.

    Raises:
        tf.errors.InvalidArgumentError: when run on a header that is cut short.
    """
    header = tf.io.decode_raw(tf.strings.substr(image_bytes, 0, HEADER_BYTES), tf.uint8)

    def number(begin: int, end: int, shifts: range) -> tf.Tensor:
        places = tf.constant([2**shift for shift in shifts], tf.int64)
        digits = tf.ensure_shape(header[begin:end], (end - begin,))
        return tf.reduce_sum(tf.cast(digits, tf.int64) * places)

    def jpeg() -> tf.Tensor:
        shape = tf.cast(tf.io.extract_jpeg_shape(image_bytes), tf.int64)
        return shape[0] * shape[1]

    def png() -> tf.Tensor:
        big_endian = range(24, -1, -8)
        return number(16, 20, big_endian) * number(20, 24, big_endian)

    def gif() -> tf.Tensor:
        return number(6, 8, range(0, 16, 8)) * number(8, 10, range(0, 16, 8))

    def bmp() -> tf.Tensor:
        width, height = number(18, 22, range(0, 32, 8)), number(22, 26, range(0, 32, 8))
        return width * tf.minimum(height, 2**32 - height)  # negative: from the top down

    first = tf.strings.substr(image_bytes, 0, 2)
    return tf.case(
        [(first == begin, size) for begin, size in (
            (b"\xff\xd8", jpeg), (b"\x89P", png), (b"GI", gif), (b"BM", bmp),
        )],
        default=lambda: tf.constant(0, tf.int64),
    )  # fmt: skip


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
    count = tf.size(records, out_type=tf.int64)
    decoded = (
        tf.data.Dataset.from_tensor_slices((tf.range(count), records))
        .map(
            lambda row, record: (row, to_pixels(decode(extract(record)), size)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .ignore_errors()
    )
    # A last row that is always there, since a batch of nothing has no element to get.
    blank = tf.data.Dataset.from_tensors((count, tf.zeros((size, size, 3), tf.uint8)))
    rows, pixels = decoded.concatenate(blank).batch(count + 1).get_single_element()
    rows = rows[:, tf.newaxis]
    shape = tf.stack([count + 1, size, size, 3])
    images = tf.scatter_nd(rows, pixels, shape)[:-1]
    valid = tf.scatter_nd(rows, tf.ones_like(rows[:, 0]), tf.stack([count + 1]))[:-1] > 0
    return tf.ensure_shape(images, (None, size, size, 3)), valid
