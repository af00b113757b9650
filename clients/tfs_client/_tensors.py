"""numpy <-> TensorProto."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tfs_client import tfs_pb2

Array = np.ndarray[Any, np.dtype[Any]]


class _Kind(NamedTuple):
    """How a dtype travels: its number, and the field that servers may use for its values."""

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
    "uint16": _Kind(tfs_pb2.DT_UINT16, "int_val"),
    "complex128": _Kind(tfs_pb2.DT_COMPLEX128, "dcomplex_val"),
    "float16": _Kind(tfs_pb2.DT_HALF, "half_val"),
    "uint32": _Kind(tfs_pb2.DT_UINT32, "uint32_val"),
    "uint64": _Kind(tfs_pb2.DT_UINT64, "uint64_val"),
}
_NAMES = {kind.number: name for name, kind in _KINDS.items()}


def dtype_name(number: int) -> str:
    """Numpy's name of a DataType; `bytes` for strings, `DT_…` for what numpy lacks."""
    return _NAMES.get(number, f"DT_{number}")


def to_proto(array: Array) -> tfs_pb2.TensorProto:
    """A numeric array of any dtype above, packed in `tensor_content`."""
    return tfs_pb2.TensorProto(
        dtype=_KINDS[array.dtype.name].number,  # type: ignore[arg-type]
        tensor_shape=_shape(array.shape),
        tensor_content=array.tobytes(),
    )


def strings_to_proto(values: list[bytes]) -> tfs_pb2.TensorProto:
    """A list of strings as a tensor [N]."""
    return tfs_pb2.TensorProto(
        dtype=tfs_pb2.DT_STRING, tensor_shape=_shape((len(values),)), string_val=values
    )


def from_proto(proto: tfs_pb2.TensorProto) -> Array:
    """An answer's tensor; strings become an object array of bytes."""
    name = dtype_name(proto.dtype)
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if name == "bytes":
        strings = np.empty(len(proto.string_val), object)
        strings[:] = proto.string_val
        return strings.reshape(shape)
    dtype = np.dtype(name)
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
    values = getattr(proto, _KINDS[name].field)
    if name == "float16":  # as bit patterns
        return np.array(values, np.uint16).view(dtype).reshape(shape)
    if dtype.kind == "c":  # real and imaginary parts in turn
        return np.array(values, dtype.type(0).real.dtype).view(dtype).reshape(shape)
    return np.array(values, dtype).reshape(shape)


def _shape(shape: tuple[int, ...]) -> tfs_pb2.TensorShapeProto:
    return tfs_pb2.TensorShapeProto(dim=[tfs_pb2.TensorShapeProto.Dim(size=n) for n in shape])
