import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import input_pb2

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


def tensor(dtype: int, dims: list[int], **fields):
    shape = tf.TensorShape(dims).as_proto()
    return tf.make_tensor_proto(0).__class__(dtype=dtype, tensor_shape=shape, **fields)


@pytest.mark.parametrize(
    ("proto", "values"),
    [
        (tensor(types_pb2.DT_UINT8, [2], int_val=[300, -1]), [44, 255]),
        (tensor(types_pb2.DT_HALF, [2], half_val=[65536 + 0x3C00, 0x4000]), [1, 2]),
        (tensor(types_pb2.DT_FLOAT, [3], float_val=[1, 2]), [1, 2, 2]),
        (tensor(types_pb2.DT_FLOAT, [2], float_val=[1, 2, 3]), [1, 2]),
        (tensor(types_pb2.DT_FLOAT, [2]), [0, 0]),
        (tensor(types_pb2.DT_UINT64, [3], uint64_val=[1, 2**64 - 1]), [1, 2**64 - 1, 2**64 - 1]),
        (tensor(types_pb2.DT_STRING, [2]), [b"", b""]),
        (tensor(types_pb2.DT_STRING, [3], string_val=[b"a", b"b"]), [b"a", b"b", b"b"]),
        (tensor(types_pb2.DT_BOOL, [2], bool_val=[True]), [True, True]),
        (tensor(types_pb2.DT_COMPLEX64, [2], scomplex_val=[1, 2, 3]), [1 + 2j, 1 + 2j]),
        (tensor(types_pb2.DT_COMPLEX128, [1], dcomplex_val=[1]), [0]),
        (tensor(types_pb2.DT_FLOAT, [0], tensor_content=b"1234"), []),
        (tensor(types_pb2.DT_STRING, [0, 2], tensor_content=b"1234"), []),
    ],
)
def test_values_that_are_too_few_too_many_or_too_large_are_read_as_tensorflow_does(proto, values):
    assert tensors.from_proto("x", proto).tolist() == values
    kind = tf.as_dtype(proto.dtype)
    assert tf.io.parse_tensor(proto.SerializeToString(), kind).numpy().tolist() == values


@pytest.mark.parametrize("length", [0, 1, 127, 128, 300, 20_000])
def test_packed_strings_are_tensorflows(length):
    array = np.array([b"a", b"x" * length, b"\xff"], object)
    proto = tensors.to_proto(array, as_content=True)
    assert not proto.string_val
    assert tensors.from_proto("x", proto).tolist() == array.tolist()
    parsed = tf.io.parse_tensor(proto.SerializeToString(), tf.string)
    assert parsed.numpy().tolist() == array.tolist()


@pytest.mark.parametrize("content", [b"\x05abc", b"\xff", b"\x01ab"])
def test_packed_strings_that_are_cut_off_are_refused(content):
    with pytest.raises(ServingError, match="tensor parsing error: x"):
        tensors.from_proto("x", tensor(types_pb2.DT_STRING, [1], tensor_content=content))


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": 20, "int_val": [1]},
        {"dtype": 1, "float_val": [1.0], "dims": [1, 10**8, 10**7, 3]},
        {"dtype": 0},
        {"dtype": 10, "tensor_content": b"\2"},
        {"dtype": 0, "dims": [0], "tensor_content": b"1234"},
    ],
)
def test_malformed_tensors_are_the_callers_mistake(fields):
    proto = tensor(**{"dims": [1], **fields})
    with pytest.raises(ServingError, match="tensor parsing error: x") as caught:
        tensors.from_proto("x", proto)
    assert caught.value.code is Code.INVALID_ARGUMENT


def example(**numbers: float) -> tf.train.Example:
    made = tf.train.Example()
    for name, number in numbers.items():
        made.features.feature[name].float_list.value.append(number)
    return made


def test_a_context_comes_before_every_example_and_is_overridden_by_it():
    given = input_pb2.Input()
    given.example_list_with_context.context.CopyFrom(example(a=1, b=2))
    empty = tf.train.Example()
    empty.features.feature["a"].SetInParent()
    given.example_list_with_context.examples.extend([example(), example(b=3), empty])
    serialized = tensors.examples(given)
    merged = [tf.train.Example.FromString(x) for x in serialized]
    assert merged[:2] == [example(a=1, b=2), example(a=1, b=3)]
    # As TensorFlow reads it: a feature without a value is none.
    specs = {name: tf.io.FixedLenFeature([], tf.float32) for name in "ab"}
    assert float(tf.io.parse_single_example(serialized[2], specs)["a"]) == 1
    plain = input_pb2.Input()
    plain.example_list.examples.extend([example(a=1)])
    assert tensors.examples(plain) == [example(a=1).SerializeToString()]
    assert tensors.examples(input_pb2.Input()) == []
