"""PredictRequest -> bytes, with the pixels copied once.

Setting a protobuf field copies what is set, and serialising copies it again; for a batch of images
that is most of what a call costs its sender. So messages are lists of pieces here, some of which
protobuf writes, and all are joined once (https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

Pieces = Sequence[bytes | memoryview]
"""What a message's bytes are made of, in order."""

_LENGTH_DELIMITED = 2
_MODEL_SPEC, _INPUTS, _OUTPUT_FILTER = 1, 2, 3  # of PredictRequest
_KEY, _VALUE = 1, 2  # of a map's entry


def predict_request(
    spec: bytes, tensors: Mapping[str, Pieces], output_filter: Sequence[str]
) -> bytes:
    """A PredictRequest of a ModelSpec and TensorProtos.

    They are the bytes that protobuf itself writes when it is asked for the same from run to run.
    """
    pieces: list[bytes | memoryview] = [_known(_MODEL_SPEC, spec)]
    for name in sorted(tensors):
        pieces += field(_INPUTS, [_known(_KEY, name.encode()), *field(_VALUE, tensors[name])])
    for name in output_filter:
        pieces.append(_known(_OUTPUT_FILTER, name.encode()))
    return b"".join(pieces)


@functools.lru_cache(maxsize=1024)  # names come again and again
def _known(number: int, content: bytes) -> bytes:
    return b"".join(field(number, [content]))


def field(number: int, pieces: Pieces) -> list[bytes | memoryview]:
    """A field that has a length: bytes, a string or a message."""
    size = sum(map(len, pieces))
    return [bytes((number << 3 | _LENGTH_DELIMITED,)) + _varint(size), *pieces]


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all bytes but the last have their highest bit set."""
    if number < 0x80:
        return bytes((number,))
    return bytes((number & 0x7F | 0x80,)) + _varint(number >> 7)
