"""Pictures that ask a decoder for more than they are worth."""

import io
import itertools
import struct
import zlib

import numpy as np
import PIL.Image
import tensorflow as tf

KINDS = ("jpeg", "png", "gif", "bmp")


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


def gif_bomb() -> bytes:
    """A small picture, with 100 million pixels in a second frame, in a few thousand bytes."""
    large = io.BytesIO()
    PIL.Image.new("L", (10_000, 10_000)).save(large, "GIF")
    data = large.getvalue()
    return claiming("gif", 6, 5)[:-1] + data[data.index(b"\x2c\0\0\0\0") :]


def large_frame() -> bytes:
    """A GIF whose only frame is larger than the screen that the header names."""
    data = bytearray(claiming("gif", 30_000, 30_000))
    data[6:10] = struct.pack("<HH", 5, 6)
    return bytes(data)


def many_scans(scans: int, side: int = 64) -> bytes:
    """A progressive JPEG that repeats its last scan."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (side, side), "red").save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (scans - data.count(b"\xff\xda")) + data[-2:]


def many_texts(texts: int, kinds: tuple[bytes, ...] = (b"zTXt",)) -> bytes:
    """A PNG with texts of a million letters each, in a thousand bytes, of each kind in turn."""
    data = claiming("png", 6, 5)
    chunks = []
    for _, kind in zip(range(texts), itertools.cycle(kinds), strict=False):
        flags = b"\0" if kind == b"zTXt" else b"\1\0\0\0"
        body = kind + b"a\0" + flags + zlib.compress(bytes(1_000_000), 9)
        chunks.append(struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)))
    return data[:33] + b"".join(chunks) + data[33:]


def narrow() -> list[bytes]:
    """A million pixels one way and five the other, within the limits, in a few thousand bytes."""
    files = [io.BytesIO(), io.BytesIO()]
    for file, size in zip(files, ((1_000_000, 5), (5, 1_000_000)), strict=True):
        PIL.Image.new("RGB", size).save(file, "PNG")
    return [file.getvalue() for file in files]


def refused() -> list[bytes]:
    """One of each sort."""
    return [
        *(claiming(kind, 30_000, 30_000) for kind in KINDS),
        claiming("bmp", -30_000, 30_000),
        claiming("png", 2**31 - 1, 2**31 - 1),
        large_frame(),
        many_scans(101),
        many_scans(50, 4000),  # within either limit
        b"\xff\xd8\xff" + b"\xff\xda" * 2_000_000,
        many_texts(9),
    ]
