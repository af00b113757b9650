import numpy as np
import pytest
import tensorflow as tf

from serving import tensors
from serving.errors import Code, ServingError

DTYPES = [
    "float32", "float64", "float16", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64", "bool", "complex64", "complex128", "bfloat16",
]  # fmt: skip


@pytest.mark.parametrize("as_content", [False, True])
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_survives_both_ways(name, as_content):
    dtype = tf.as_dtype(name).as_numpy_dtype
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    proto = tensors.to_proto(array, as_content)
    assert bool(proto.tensor_content) == as_content
    back = tensors.from_proto("x", proto)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    np.testing.assert_array_equal(tf.make_ndarray(proto), array)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)])
def test_scalars_and_empty_tensors_keep_their_shape(shape):
    array = np.full(shape, 3.5, np.float32)
    back = tensors.from_proto("x", tensors.to_proto(array))
    assert back.shape == shape
    np.testing.assert_array_equal(back, array)


def test_strings_are_bytes_of_any_kind():
    array = np.array([[b"a", b""], [b"\xff\0", b"end\0"]], object)
    proto = tensors.to_proto(array)
    back = tensors.from_proto("x", proto)
    assert back.dtype == object
    assert back.tolist() == array.tolist()


def test_contents_that_do_not_fit_are_refused_by_name():
    proto = tf.make_tensor_proto(np.zeros((2, 2), np.float32))
    proto.tensor_content = proto.tensor_content[:-1]
    with pytest.raises(ServingError, match="tensor parsing error: pixels") as caught:
        tensors.from_proto("pixels", proto)
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": 4, "int_val": [300]},
        {"dtype": 20, "int_val": [1]},
        {"dtype": 1, "float_val": [1.0], "dims": [1, 10**8, 10**7, 3]},
        {"dtype": 0},
    ],
)
def test_malformed_tensors_are_the_callers_mistake(fields):
    dims = fields.pop("dims", [1])
    shape = tf.TensorShape(dims).as_proto()
    proto = tf.make_tensor_proto(0).__class__(tensor_shape=shape, **fields)
    with pytest.raises(ServingError, match="tensor parsing error: x") as caught:
        tensors.from_proto("x", proto)
    assert caught.value.code is Code.INVALID_ARGUMENT
