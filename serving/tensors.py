"""TensorProto <-> numpy, and what else requests carry.

A request may carry its numbers packed in `tensor_content` or in the typed field of its dtype;
answers use the typed field, as TensorFlow Serving's do unless it is told otherwise.
"""

import math

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import input_pb2

from serving.errors import invalid_argument

# One value may stand for all of a tensor, so a short message can ask for any amount of memory.
MAX_ELEMENTS = 2**31
_STRING = types_pb2.DT_STRING

# dtype -> TensorProto's field; float16 and bfloat16 travel as bit patterns.
_FIELDS = {
    tf.float32: "float_val",
    tf.float64: "double_val",
    tf.int32: "int_val",
    tf.int16: "int_val",
    tf.int8: "int_val",
    tf.uint8: "int_val",
    tf.uint16: "int_val",
    tf.int64: "int64_val",
    tf.uint32: "uint32_val",
    tf.uint64: "uint64_val",
    tf.bool: "bool_val",
    tf.float16: "half_val",
    tf.bfloat16: "half_val",
    tf.complex64: "scomplex_val",
    tf.complex128: "dcomplex_val",
}
_BY_ENUM = {dtype.as_datatype_enum: (dtype.as_numpy_dtype, f) for dtype, f in _FIELDS.items()}
_BY_NUMPY = {np.dtype(kind): (enum, f) for enum, (kind, f) in _BY_ENUM.items()}
_HALVES = {types_pb2.DT_HALF, types_pb2.DT_BFLOAT16}
# The fields' numbers in numpy, parts of complex ones too.
_NUMPY = {
    "float_val": np.float32,
    "double_val": np.float64,
    "int_val": np.int32,
    "int64_val": np.int64,
    "uint32_val": np.uint32,
    "uint64_val": np.uint64,
    "bool_val": np.bool_,
    "half_val": np.int32,
    "scomplex_val": np.float32,
    "dcomplex_val": np.float64,
}
# What protobuf packs as numpy does: these fields' tags, on the wire (protobuf.dev/…/encoding).
_PACKED = {
    field: bytes([tensor_pb2.TensorProto.DESCRIPTOR.fields_by_name[field].number << 3 | 2])
    for field in ("float_val", "double_val", "bool_val", "scomplex_val", "dcomplex_val")
}


def dtype_of(array: np.ndarray) -> int:
    """A DataType: strings are arrays of objects."""
    return _STRING if array.dtype == object else _BY_NUMPY[array.dtype][0]


def from_proto(name: str, proto: tensor_pb2.TensorProto) -> np.ndarray:
    """A request's tensor; strings become an object array of bytes.

    Raises:
        ServingError: INVALID_ARGUMENT naming the tensor, when its contents do not fit its shape.
    """
    try:
        return _from_proto(proto)
    except (ValueError, TypeError, KeyError, OverflowError, tf.errors.OpError) as error:
        raise invalid_argument(f"tensor parsing error: {name}") from error


def _from_proto(proto: tensor_pb2.TensorProto) -> np.ndarray:
    shape = [dim.size for dim in proto.tensor_shape.dim]
    elements = math.prod(shape)
    if elements > MAX_ELEMENTS or any(size < 0 for size in shape):
        raise ValueError("no shape to be had")
    content = proto.tensor_content if elements else b""  # that of no elements is not looked at
    if proto.dtype == _STRING:
        if content:
            return np.array(tf.io.parse_tensor(proto.SerializeToString(), tf.string), object)
        return _fill(np.array(list(proto.string_val), object), b"", elements).reshape(shape)
    dtype, field = _BY_ENUM[proto.dtype]
    if content:
        values = np.frombuffer(content, dtype)
        if dtype == np.bool_ and values.view(np.uint8).max() > 1:
            raise ValueError("neither false nor true")
        return values.reshape(shape)
    given: np.ndarray = np.array(getattr(proto, field), _NUMPY[field])
    if proto.dtype in _HALVES:
        values = given.astype(np.uint16).view(dtype)
    elif np.issubdtype(dtype, np.complexfloating):
        values = given[: len(given) // 2 * 2].view(dtype)
    else:
        values = given.astype(dtype)  # what does not fit wraps round, as in C++
    return _fill(values, 0, elements).reshape(shape)


def _fill(values: np.ndarray, nothing: object, elements: int) -> np.ndarray:
    """Exactly so many: a short field repeats its last value, none at all means nothing."""
    if len(values) >= elements:
        return values[:elements]
    filled = np.full(elements, values[-1] if len(values) else nothing, values.dtype)
    filled[: len(values)] = values
    return filled


def to_proto(array: np.ndarray, as_content: bool = False) -> tensor_pb2.TensorProto:
    """An answer's tensor, in the typed field, or in `tensor_content`."""
    proto = tensor_pb2.TensorProto(dtype=dtype_of(array))
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    flat = np.ascontiguousarray(array).reshape(-1)
    if array.dtype == object:
        if as_content:
            values = flat.tolist()
            proto.tensor_content = b"".join([*map(_varint, map(len, values)), *values])
        else:
            proto.string_val.extend(flat.tolist())
    elif as_content:
        proto.tensor_content = flat.tobytes()
    elif tag := _PACKED.get(field := _BY_NUMPY[array.dtype][1]):
        proto.MergeFromString(tag + _varint(flat.nbytes) + flat.tobytes())  # a tenth of the time
    else:
        if proto.dtype in _HALVES:
            flat = flat.view(np.uint16)
        getattr(proto, field).extend(flat.tolist())
    return proto


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def examples(given: input_pb2.Input) -> list[bytes]:
    """Serialized tf.Examples; a context comes before each, whose own features override it."""
    context, listed = b"", given.example_list
    if given.WhichOneof("kind") == "example_list_with_context":
        listed = given.example_list_with_context
        context = listed.context.SerializeToString()
    return [context + example.SerializeToString() for example in listed.examples]
