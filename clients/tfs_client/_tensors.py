"""numpy <-> TensorProto."""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfs_client import tfs_pb2
from tfs_client._wire import Pieces, field

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array = np.ndarray[Any, np.dtype[Any]]


class _Kind(NamedTuple):
    """How a dtype travels: its number, and the field for values that are not packed."""

    number: int
    field: str


_KINDS = {
    "float32": _Kind(tfs_pb2.DT_FLOAT, "float_val"),
    "float64": _Kind(tfs_pb2.DT_DOUBLE, "double_val"),
    "int32": _Kind(tfs_pb2.DT_INT32, "int_val"),
    "uint8": _Kind(tfs_pb2.DT_UINT8, "int_val"),
    "int16": _Kind(tfs_pb2.DT_INT16, "int_val"),
    "int8": _Kind(tfs_pb2.DT_INT8, "int_val"),
    "bytes": _Kind(tfs_pb2.DT_STRING, "string_val"),
    "complex64": _Kind(tfs_pb2.DT_COMPLEX64, "scomplex_val"),
    "int64": _Kind(tfs_pb2.DT_INT64, "int64_val"),
    "bool": _Kind(tfs_pb2.DT_BOOL, "bool_val"),
    "bfloat16": _Kind(tfs_pb2.DT_BFLOAT16, "half_val"),
    "uint16": _Kind(tfs_pb2.DT_UINT16, "int_val"),
    "complex128": _Kind(tfs_pb2.DT_COMPLEX128, "dcomplex_val"),
    "float16": _Kind(tfs_pb2.DT_HALF, "half_val"),
    "uint32": _Kind(tfs_pb2.DT_UINT32, "uint32_val"),
    "uint64": _Kind(tfs_pb2.DT_UINT64, "uint64_val"),
    "float8_e5m2": _Kind(tfs_pb2.DT_FLOAT8_E5M2, "float8_val"),
    "float8_e4m3fn": _Kind(tfs_pb2.DT_FLOAT8_E4M3FN, "float8_val"),
}
_CONTENT = 4  # of TensorProto
_NAMES = {kind.number: name for name, kind in _KINDS.items()}
# What make_tensor_proto does not pack either, besides single values.
_NEVER_PACKED = frozenset({"bool", "uint16", "complex64", "complex128"})
_FROM_ML_DTYPES = frozenset({"bfloat16", "float8_e5m2", "float8_e4m3fn"})
_PLAIN = frozenset(np.dtype(name) for name in set(_KINDS) - _FROM_ML_DTYPES - {"bytes"})


def dtype_name(number: int) -> str:
    """Numpy's name of a DataType; `bytes` for strings, `DT_…` for what numpy lacks."""
    return _NAMES.get(number, f"DT_{number}")


def dtype_number(name: str) -> int:
    """The DataType of what `dtype_name` names."""
    return _KINDS[name].number


def as_array(value: ArrayLike) -> Array:
    """What people write -> the array that is sent, as TensorFlow's make_tensor_proto has it.

    Python's own numbers, also in lists, become float32 and int32 (int64 where they need it); numpy
    arrays keep their dtype; strings become bytes in UTF-8.

    Raises:
        TypeError: it has a dtype that cannot be sent.
        ValueError: it is ragged.
    """
    if type(value) is np.ndarray and value.dtype in _PLAIN:
        return value
    ours = not isinstance(value, (np.ndarray, np.generic))
    array = plain_array(value)
    if array.dtype.kind in "SUO":
        return _as_bytes(array)
    if ours and array.dtype == np.float64:
        array = array.astype(np.float32)
    elif ours and array.dtype == np.int64 and np.array_equal(array, array.astype(np.int32)):
        array = array.astype(np.int32)
    if _name(array.dtype) not in _KINDS:
        raise TypeError(f"an array of dtype {array.dtype} cannot be sent")
    return array


@functools.lru_cache(maxsize=64)
def _name(dtype: np.dtype[Any]) -> str:
    return dtype.name  # which numpy computes each time


def plain_array(value: ArrayLike) -> Array:
    """As numpy has it, but with strings as they are: numpy's own lose their last zero bytes."""
    if not isinstance(value, np.ndarray):
        try:
            array: Array = np.asarray(value)
        except UnicodeDecodeError:  # bytes beside text
            return np.asarray(value, object)
        return np.asarray(value, object) if array.dtype.kind in "SU" else array
    return value


def _as_bytes(array: Array) -> Array:
    encoded = np.empty(array.size, object)
    for position, item in enumerate(array.reshape(-1).tolist()):
        if not isinstance(item, (str, bytes)):
            raise TypeError(f"an array of {type(item).__name__} objects cannot be sent")
        encoded[position] = item.encode() if isinstance(item, str) else item
    return encoded.reshape(array.shape)


def to_proto(array: Array) -> Pieces:
    """An array as `as_array` returns it -> a TensorProto; not copied where it lies in one piece."""
    if array.dtype == object:
        return strings(array.reshape(-1).tolist(), array.shape)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    name = _name(array.dtype)
    if array.size > 1 and name not in _NEVER_PACKED:
        return numbers(name, array.shape, [array])
    return [
        _head(name, array.shape),
        _values(_KINDS[name].field, np.ascontiguousarray(array).reshape(-1)),
    ]


def _values(name: str, flat: Array) -> bytes:
    """The field for values that are not packed, as part of a TensorProto."""
    if not flat.size:
        return b""
    if name == "float8_val":
        return tfs_pb2.TensorProto(float8_val=flat.tobytes()).SerializeToString()
    if name == "half_val":  # as bit patterns
        flat = flat.view(np.uint16)
    elif name in ("scomplex_val", "dcomplex_val"):  # real and imaginary parts in turn
        flat = flat.view(flat.real.dtype)
    given: dict[str, Any] = {name: flat.tolist()}
    return tfs_pb2.TensorProto(**given).SerializeToString()


def numbers(name: str, shape: tuple[int, ...], arrays: list[Array]) -> Pieces:
    """A TensorProto of several arrays of a dtype, one after the other."""
    return [_head(name, shape), *field(_CONTENT, [_bytes_of(array) for array in arrays])]


def strings(values: list[bytes], shape: tuple[int, ...]) -> Pieces:
    """A TensorProto of strings."""
    return [_head("bytes", shape), tfs_pb2.TensorProto(string_val=values).SerializeToString()]


@functools.lru_cache(maxsize=1024)  # a dozen protobuf messages, and shapes come again and again
def _head(name: str, shape: tuple[int, ...]) -> bytes:
    """The first fields of a TensorProto; all others come after them."""
    dimensions = [tfs_pb2.TensorShapeProto.Dim(size=size) for size in shape]
    proto = tfs_pb2.TensorProto(
        dtype=_KINDS[name].number,  # type: ignore[arg-type]
        tensor_shape=tfs_pb2.TensorShapeProto(dim=dimensions),
    )
    return proto.SerializeToString()


def _bytes_of(array: Array) -> memoryview:
    """An array's memory, in C order; copied only where it lies otherwise."""
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(flat)


def from_proto(proto: tfs_pb2.TensorProto) -> Array:
    """An answer's tensor.

    Strings become an object array of bytes. bfloat16 and 8-bit floats are numpy dtypes of the
    package ml_dtypes; where that is not installed (extra `bfloat16`), bfloat16 comes as the same
    numbers in float32.

    Raises:
        TypeError: numpy has no such dtype.
        ValueError: its contents do not fit its shape.
    """
    name = dtype_name(proto.dtype)
    shape = tuple([dim.size for dim in proto.tensor_shape.dim])
    if name not in _KINDS:
        raise TypeError(f"a tensor of {name} cannot be read: numpy has no such dtype")
    if name == "bytes":
        packed = proto.tensor_content
        listed = _unpacked(packed, math.prod(shape)) if packed else list(proto.string_val)
        values = np.empty(len(listed), object)
        values[:] = listed
        return _filled(values, shape, b"")
    dtype = numpy_dtype(name)
    if proto.tensor_content:
        values = np.frombuffer(proto.tensor_content, dtype or np.uint16)
    else:
        field = _KINDS[name].field
        values = _listed(getattr(proto, field)[:], field, dtype)
    if dtype is None:  # the upper half of a float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return _filled(values, shape)


def _unpacked(content: bytes, count: int) -> list[bytes]:
    """Strings as TensorFlow packs them: all lengths as varints, then all bytes."""
    lengths, at = [], 0
    for _ in range(count):
        length = shift = 0
        while True:
            byte = content[at]
            at += 1
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        lengths.append(length)
    ends = list(itertools.accumulate(lengths, initial=at))
    if ends[-1] != len(content):
        raise ValueError("a tensor of strings has other lengths than it says")
    return [content[begin:end] for begin, end in itertools.pairwise(ends)]


def _listed(values: Any, field: str, dtype: np.dtype[Any] | None) -> Array:
    """Values that are not packed, of a dtype; bit patterns for None."""
    if field == "float8_val":
        return np.frombuffer(values, dtype)
    if field == "half_val":
        return np.array(values, np.uint16).view(dtype or np.uint16)
    if dtype is not None and dtype.kind == "c":
        return np.array(values, dtype.type(0).real.dtype).view(dtype)
    return np.array(values, dtype)


def _filled(values: Array, shape: tuple[int, ...], nothing: object = 0) -> Array:
    """Of a shape; the last value stands for those that are left out (TensorFlow's tensor.proto)."""
    if values.shape == shape:
        return values
    missing = math.prod(shape) - values.size
    if missing:
        last = values[-1] if values.size else nothing
        values = np.concatenate([values, np.full(missing, last, values.dtype)])
    return values.reshape(shape)


def numpy_dtype(name: str) -> np.dtype[Any] | None:
    """None for bfloat16 without ml_dtypes."""
    if name not in _FROM_ML_DTYPES:
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        if name == "bfloat16":
            return None
        raise TypeError(f"a tensor of {name} needs the package ml_dtypes: install it") from None
    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return found
