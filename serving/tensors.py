"""TensorProto <-> numpy.

A request may carry its numbers packed in `tensor_content` or in the typed field of its dtype;
answers use the typed field, as TensorFlow Serving's do unless it is told otherwise.
"""

import math

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from serving.errors import invalid_argument

# One value may stand for all of a tensor, so a short message can ask for any amount of memory.
MAX_ELEMENTS = 2**31

# numpy kind and size -> TensorProto's field; float16 and bfloat16 travel as bit patterns.
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
}
_BIT_PATTERNS = (tf.float16, tf.bfloat16)
_COMPLEX = {tf.complex64: "scomplex_val", tf.complex128: "dcomplex_val"}


def from_proto(name: str, proto: tensor_pb2.TensorProto) -> np.ndarray:
    """A request's tensor; strings become an object array of bytes.

    Raises:
        ServingError: INVALID_ARGUMENT naming the tensor, when its contents do not fit its shape.
    """
    elements = math.prod(dim.size for dim in proto.tensor_shape.dim)
    if elements > MAX_ELEMENTS:
        raise invalid_argument(f"tensor parsing error: {name}: {elements} elements are too many")
    try:
        return tf.make_ndarray(proto)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise invalid_argument(f"tensor parsing error: {name}") from error


def to_proto(array: np.ndarray, as_content: bool = False) -> tensor_pb2.TensorProto:
    """An answer's tensor, in the typed field, or in `tensor_content` where the dtype allows it."""
    dtype = tf.as_dtype(array.dtype) if array.dtype != object else tf.string
    proto = tensor_pb2.TensorProto(
        dtype=dtype.as_datatype_enum, tensor_shape=tf.TensorShape(array.shape).as_proto()
    )
    flat = array.ravel()
    if dtype == tf.string:
        proto.string_val.extend(flat.tolist())
    elif as_content:
        proto.tensor_content = flat.tobytes()
    elif dtype in _BIT_PATTERNS:
        proto.half_val.extend(flat.view(np.uint16).tolist())
    elif dtype in _COMPLEX:
        parts = flat.view(flat.real.dtype)
        getattr(proto, _COMPLEX[dtype]).extend(parts.tolist())
    else:
        getattr(proto, _FIELDS[dtype]).extend(flat.tolist())
    return proto
