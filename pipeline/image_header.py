"""What the bytes of an encoded picture say of it, read in the graph before anything is decoded.

Decoders allocate what a header asks for, and some do much work for few bytes.
"""

import tensorflow as tf

HEADER_BYTES = 26  # in which PNG, GIF and BMP name their size
_EXTENSION = 0x21  # a block of a GIF that is no picture


def pixels(image_bytes: tf.Tensor) -> tf.Tensor:
    """Height × width as the first bytes of a PNG, GIF or BMP name them: string [] to int64 [].

    0 for what is none of these. A GIF's size is that of its screen.

    Raises:
        tf.errors.InvalidArgumentError: when run on a header that is cut short.
    """
    header = tf.io.decode_raw(tf.strings.substr(image_bytes, 0, HEADER_BYTES), tf.uint8)

    def number(begin: int, end: int, shifts: range) -> tf.Tensor:
        places = tf.constant([2**shift for shift in shifts], tf.int64)
        digits = tf.ensure_shape(header[begin:end], (end - begin,))
        return tf.reduce_sum(tf.cast(digits, tf.int64) * places)

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
        [(first == begin, size) for begin, size in ((b"\x89P", png), (b"GI", gif), (b"BM", bmp))],
        default=lambda: tf.constant(0, tf.int64),
    )


def scans(jpeg: tf.Tensor, most: int) -> tf.Tensor:
    """Scans of a JPEG, counted up to `most`: string [] to int64 [].

    One too many for each thumbnail within it. A file of nothing but scans would cost thirty times
    its size if all were counted.
    """
    # Start of scan, ITU-T T.81, table B.1; in a scan's own data 0xFF is followed by 0.
    return _times(b"\xff\xda", jpeg, most)


def texts(png: tf.Tensor, most: int) -> tf.Tensor:
    """Texts of a PNG that may be compressed, zTXt and iTXt: string [] to int64 [].

    Of either kind counted up to `most`; where there are fewer, perhaps some too many, for names
    that chance puts into the picture's own data: a whole one once in two gigabytes.
    """
    either = _times(b"TXt", png, most)  # one pass is enough for an ordinary file
    return tf.cond(
        either < most,
        lambda: either,
        lambda: _times(b"zTXt", png, most) + _times(b"iTXt", png, most),
    )


def _times(words: bytes, data: tf.Tensor, most: int) -> tf.Tensor:
    """How often words are in it, counted up to `most`: string [] to int64 []."""
    parts = tf.raw_ops.StringSplitV2(input=data[tf.newaxis], sep=words, maxsplit=most)
    return parts.shape[1] - 1


def first_frame(gif: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A GIF without all that follows its first frame; decoders read the rest, and throw it away.

    The frame is put into the upper left corner of its screen.

    Blocks and their parts say how long they are, and are thus chains through the file. They are
    followed from every byte at once, in as many steps as a file's size has bits: one after the
    other, a file made of tiny blocks would take minutes. GIF89a specification, sections 15 to 26.

    Args:
        gif: string [].

    Returns:
        string [], and the frame's height × width, int64 [].

    Raises:
        tf.errors.InvalidArgumentError: when run on a header that is cut short.
    """
    data = tf.cast(tf.io.decode_raw(gif, tf.uint8), tf.int32)
    places = tf.range(tf.size(data))
    last = tf.size(data) - 1

    def palette(flags: tf.Tensor) -> tf.Tensor:
        """Bytes of a palette, if there is one."""
        return tf.where(flags < 0x80, 0, 3 * tf.bitwise.left_shift(2, flags % 8))

    def within(place: tf.Tensor) -> tf.Tensor:
        return tf.minimum(place, last)

    # From each byte to the empty sub-block at the end of the chain of sub-blocks that begins there.
    ends = _followed(tf.where(data == 0, places, within(places + 1 + data)))
    # From each block to the next that is no extension.
    after = within(tf.gather(ends, within(places + 2)) + 1)
    pictures = _followed(tf.where(data == _EXTENSION, after, places))
    begin = pictures[13 + palette(data[10])]
    frame = data[begin : begin + 10]
    area = (frame[5] + 256 * frame[6], frame[7] + 256 * frame[8])
    end = ends[within(begin + 10 + palette(frame[9]) + 1)]
    # TensorFlow would move it within its own size by its place on the screen, and cut off the rest.
    head = tf.strings.substr(gif, 0, begin + 1)
    tail = tf.strings.substr(gif, begin + 5, end - begin - 4)
    return head + bytes(4) + tail + b";", tf.reduce_prod(tf.cast(area, tf.int64))


def _followed(chain: tf.Tensor) -> tf.Tensor:
    """Where each place's chain ends: int32 [N], the next place of each; an end is its own next."""
    return tf.while_loop(
        lambda chain, further: tf.reduce_any(chain != further),
        lambda chain, further: (further, tf.gather(further, further)),
        (chain, tf.gather(chain, chain)),
    )[1]
