"""numpy <-> TensorProto."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfs_client import tfs_pb2
from tfs_client._wire import Tensor

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
_NAMES = {kind.number: name for name, kind in _KINDS.items()}
# What make_tensor_proto does not pack either, besides single values.
_NEVER_PACKED = frozenset({"bool", "uint16", "complex64", "complex128"})
_FROM_ML_DTYPES = frozenset({"bfloat16", "float8_e5m2", "float8_e4m3fn"})


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
    ours = not isinstance(value, (np.ndarray, np.generic))
    array = plain_array(value)
    if array.dtype.kind in "SUO":
        return _as_bytes(array)
    if ours and array.dtype == np.float64:
        array = array.astype(np.float32)
    elif ours and array.dtype == np.int64 and np.array_equal(array, array.astype(np.int32)):
        array = array.astype(np.int32)
    if array.dtype.name not in _KINDS:
        raise TypeError(f"an array of dtype {array.dtype} cannot be sent")
    return array


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


def to_tensor(array: Array) -> Tensor:
    """An array as `as_array` returns it; not copied where it lies in one piece."""
    if array.dtype == object:
        return strings(array.reshape(-1).tolist(), array.shape)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    if array.size > 1 and array.dtype.name not in _NEVER_PACKED:
        return numbers(array.dtype, array.shape, [array])
    proto = _proto(array.dtype.name, array.shape)
    if array.size:
        field = _KINDS[array.dtype.name].field
        if field == "float8_val":
            proto.float8_val = array.tobytes()
        else:
            getattr(proto, field).extend(_plain(array, field))
    return Tensor(proto)


def _plain(array: Array, field: str) -> list[Any]:
    """The values, as the field for those of their dtype holds them."""
    flat = array.reshape(-1)
    if field == "half_val":  # as bit patterns
        flat = flat.view(np.uint16)
    elif field in ("scomplex_val", "dcomplex_val"):  # real and imaginary parts in turn
        flat = flat.view(flat.real.dtype)
    return list(flat.tolist())


def numbers(dtype: np.dtype[Any], shape: tuple[int, ...], pieces: list[Array]) -> Tensor:
    """A tensor of several arrays, one after the other."""
    return Tensor(_proto(dtype.name, shape), [_bytes_of(piece) for piece in pieces])


def _bytes_of(array: Array) -> memoryview:
    """An array's memory, in C order; copied only where it lies otherwise."""
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(flat)


def strings(values: list[bytes], shape: tuple[int, ...]) -> Tensor:
    """A tensor of strings."""
    proto = _proto("bytes", shape)
    proto.string_val.extend(values)
    return Tensor(proto)


def _proto(name: str, shape: tuple[int, ...]) -> tfs_pb2.TensorProto:
    dimensions = [tfs_pb2.TensorShapeProto.Dim(size=size) for size in shape]
    return tfs_pb2.TensorProto(
        dtype=_KINDS[name].number,  # type: ignore[arg-type]
        tensor_shape=tfs_pb2.TensorShapeProto(dim=dimensions),
    )


def from_proto(proto: tfs_pb2.TensorProto) -> Array:
    """An answer's tensor.

    Strings become an object array of bytes. bfloat16 and 8-bit floats are numpy dtypes of the
    package ml_dtypes; where that is not installed (extra `bfloat16`), bfloat16 comes as the same
    numbers in float32.

    Raises:
        TypeError: numpy has no such dtype.
    """
    name = dtype_name(proto.dtype)
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if name not in _KINDS:
        raise TypeError(f"a tensor of {name} cannot be read: numpy has no such dtype")
    if name == "bytes":
        values = np.empty(len(proto.string_val), object)
        values[:] = proto.string_val
        return _filled(values, shape, b"")
    content = proto.tensor_content or _packed(proto, name)
    dtype = _dtype(name)
    if dtype is None:  # the upper half of a float32
        wide = np.frombuffer(content, np.uint16).astype(np.uint32) << 16
        return _filled(wide.view(np.float32), shape)
    return _filled(np.frombuffer(content, dtype), shape)


def _packed(proto: tfs_pb2.TensorProto, name: str) -> bytes:
    """The values of a tensor as `tensor_content` has them."""
    field = _KINDS[name].field
    values = getattr(proto, field)
    if field == "float8_val":
        return bytes(values)
    if field == "half_val":
        return np.array(values, np.uint16).tobytes()
    if field == "scomplex_val":
        return np.array(values, np.float32).tobytes()
    return np.array(values, np.float64 if field == "dcomplex_val" else name).tobytes()


def _filled(values: Array, shape: tuple[int, ...], nothing: object = 0) -> Array:
    """Of a shape; the last value stands for those that are left out (TensorFlow's tensor.proto)."""
    missing = math.prod(shape) - values.size
    if missing > 0:
        last = values[-1] if values.size else nothing
        values = np.concatenate([values, np.full(missing, last, values.dtype)])
    return values.reshape(shape)


def _dtype(name: str) -> np.dtype[Any] | None:
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
