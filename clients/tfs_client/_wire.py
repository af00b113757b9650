"""PredictRequest -> bytes, with the pixels copied once.

Setting a protobuf field copies what is set, and serialising copies it again; for a batch of images
that is most of what a call costs its sender. So protobuf writes all but `tensor_content`, and the
bytes of that are put between (https://protobuf.dev/programming-guides/encoding). They come last in
a TensorProto, whose higher fields hold values that are not packed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tfs_client import tfs_pb2

_LENGTH_DELIMITED = 2
_MODEL_SPEC, _INPUTS, _OUTPUT_FILTER = 1, 2, 3  # of PredictRequest
_KEY, _VALUE = 1, 2  # of a map's entry
_TENSOR_CONTENT = 4  # of TensorProto


class Tensor(NamedTuple):
    """A tensor to be sent: a TensorProto, and what its `tensor_content` is made of, in order."""

    proto: tfs_pb2.TensorProto
    content: Sequence[bytes | memoryview] = ()


def predict_request(
    spec: tfs_pb2.ModelSpec, inputs: Mapping[str, Tensor], output_filter: Sequence[str]
) -> bytes:
    """The bytes that protobuf itself writes when it is asked for the same from run to run."""
    parts: list[bytes | memoryview] = []
    _put(parts, _MODEL_SPEC, [spec.SerializeToString()])
    for name, tensor in sorted(inputs.items()):
        value: list[bytes | memoryview] = [tensor.proto.SerializeToString()]
        if tensor.content:
            _put(value, _TENSOR_CONTENT, tensor.content)
        entry: list[bytes | memoryview] = []
        _put(entry, _KEY, [name.encode()])
        _put(entry, _VALUE, value)
        _put(parts, _INPUTS, entry)
    for name in output_filter:
        _put(parts, _OUTPUT_FILTER, [name.encode()])
    return b"".join(parts)


def _put(
    parts: list[bytes | memoryview], field: int, content: Sequence[bytes | memoryview]
) -> None:
    """Append a field that has a length."""
    size = sum(len(piece) for piece in content)
    parts.append(bytes([field << 3 | _LENGTH_DELIMITED]) + _varint(size))
    parts.extend(content)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all bytes but the last have their highest bit set."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
