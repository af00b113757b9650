import numpy as np
import pytest
import tensorflow as tf
from tfs_client import _tensors, tfs_pb2

from serving import tensors

DTYPES = sorted(set(_tensors._KINDS) - {"bytes"})


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_what_tensorflow_reads_and_writes(name):
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(name)
    ours = _tensors.to_proto(array).SerializeToString()
    np.testing.assert_array_equal(tf.make_ndarray(tf_proto(ours)), array)
    for as_content in (False, True):
        theirs = tensors.to_proto(array, as_content).SerializeToString()
        back = _tensors.from_proto(tfs_pb2.TensorProto.FromString(theirs))
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)


def test_strings_are_what_tensorflow_reads_and_writes():
    ours = _tensors.strings_to_proto([b"a", b"\xff"]).SerializeToString()
    assert tf.make_ndarray(tf_proto(ours)).tolist() == [b"a", b"\xff"]
    theirs = tf.make_tensor_proto([[b"a"], [b"bc"]]).SerializeToString()
    back = _tensors.from_proto(tfs_pb2.TensorProto.FromString(theirs))
    assert back.tolist() == [[b"a"], [b"bc"]]


def test_numbers_of_dtypes_have_names():
    assert _tensors.dtype_name(tfs_pb2.DT_FLOAT) == "float32"
    assert _tensors.dtype_name(14) == "DT_14"


def tf_proto(data: bytes):
    return tf.make_tensor_proto(0).FromString(data)
