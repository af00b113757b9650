import sys

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from tfs_client import _tensors, tfs_pb2

from serving import tensors

# TensorFlow Serving's own tensors have no 8-bit floats: test_wire.py has them.
DTYPES = sorted(set(_tensors._KINDS) - {"bytes", "float8_e5m2", "float8_e4m3fn"})


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_what_tensorflow_reads_and_writes(name):
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(getattr(ml_dtypes, name, name))
    ours = serialized(array)
    np.testing.assert_array_equal(tf.make_ndarray(tf_proto(ours)), array)
    for as_content in (False, True):
        theirs = tensors.to_proto(array, as_content).SerializeToString()
        back = _tensors.from_proto(tfs_pb2.TensorProto.FromString(theirs))
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)


def test_strings_are_what_tensorflow_reads_and_writes():
    ours = serialized(np.array([b"a", b"\xff"], object))
    assert tf.make_ndarray(tf_proto(ours)).tolist() == [b"a", b"\xff"]
    theirs = tf.make_tensor_proto([[b"a"], [b"bc"]]).SerializeToString()
    back = _tensors.from_proto(tfs_pb2.TensorProto.FromString(theirs))
    assert back.tolist() == [[b"a"], [b"bc"]]
    values = np.array([[b"", b"a" * 200], [b"\xff", b"bc"]], object)
    packed = tensors.to_proto(values, as_content=True).SerializeToString()
    proto = tfs_pb2.TensorProto.FromString(packed)
    assert not proto.string_val
    assert _tensors.from_proto(proto).tolist() == values.tolist()
    proto.tensor_content += b"x"
    with pytest.raises(ValueError, match="other lengths"):
        _tensors.from_proto(proto)


def test_numbers_of_dtypes_have_names():
    assert _tensors.dtype_name(tfs_pb2.DT_FLOAT) == "float32"
    assert _tensors.dtype_name(11) == "DT_11"  # DT_QINT8, which numpy lacks
    with pytest.raises(TypeError, match="DT_11"):
        _tensors.from_proto(tfs_pb2.TensorProto(dtype=11))


def test_values_that_are_left_out_repeat_the_last():
    proto = tfs_pb2.TensorProto(dtype=tfs_pb2.DT_FLOAT, float_val=[1, 2])
    proto.tensor_shape.dim.add(size=4)
    assert _tensors.from_proto(proto).tolist() == [1, 2, 2, 2]
    proto.ClearField("float_val")
    assert _tensors.from_proto(proto).tolist() == [0, 0, 0, 0]
    text = tfs_pb2.TensorProto(dtype=tfs_pb2.DT_STRING, string_val=[b"a"])
    text.tensor_shape.dim.add(size=2)
    assert _tensors.from_proto(text).tolist() == [b"a", b"a"]


def test_bfloat16_comes_as_float32_where_numpy_lacks_it(monkeypatch):
    array = np.array([1.5, -2.0, 3e38], ml_dtypes.bfloat16)
    proto = tfs_pb2.TensorProto.FromString(serialized(array))
    assert _tensors.from_proto(proto).dtype == array.dtype
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    back = _tensors.from_proto(proto)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, array.astype(np.float32))


def serialized(array) -> bytes:
    return b"".join(_tensors.to_proto(_tensors.as_array(array)))


def tf_proto(data: bytes):
    return tf.make_tensor_proto(0).FromString(data)
