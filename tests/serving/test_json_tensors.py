import json
import time

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from serving import json_tensors, json_text
from serving.errors import Code, ServingError
from serving.json_tensors import COLUMNS, ROWS


def read(text: str | bytes, **dtypes: tf.DType) -> dict[str, np.ndarray]:
    infos = {
        name: meta_graph_pb2.TensorInfo(dtype=dtype.as_datatype_enum)
        for name, dtype in dtypes.items()
    }
    data = text.encode() if isinstance(text, str) else text
    return json_tensors.inputs(json_text.parse(data), infos)[0]


def instances(text: str, dtype: tf.DType) -> np.ndarray:
    return read(f'{{"instances": {text}}}', x=dtype)["x"]


def test_rows_and_columns_carry_the_same_tensors():
    rows = '{"instances": [{"a": [1, 2], "b": 3}, {"a": [4, 5], "b": 6}]}'
    columns = '{"inputs": {"b": [3, 6], "a": [[1, 2], [4, 5]], "more": 1}}'
    for text in (rows, columns):
        tensors = read(text, a=tf.float32, b=tf.int64)
        assert tensors["a"].dtype == np.float32
        assert tensors["b"].dtype == np.int64
        np.testing.assert_array_equal(tensors["a"], [[1, 2], [4, 5]])
        np.testing.assert_array_equal(tensors["b"], [3, 6])


def test_a_plain_value_is_the_only_input():
    assert read('{"inputs": 3.5}', x=tf.float64)["x"].shape == ()
    assert read('{"inputs": []}', x=tf.float64)["x"].shape == (0,)
    assert instances("[[], []]", tf.float32).shape == (2, 0)


def test_form_is_told():
    infos = {"x": meta_graph_pb2.TensorInfo(dtype=tf.float32.as_datatype_enum)}
    for key in (ROWS, COLUMNS):
        assert json_tensors.inputs({key: [1.0]}, infos)[1] == key


def test_an_image_of_nested_lists_is_read_in_one_go():
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3))
    text = json.dumps({"instances": [image.tolist()]})
    started = time.process_time()
    np.testing.assert_array_equal(read(text, x=tf.float32)["x"][0], image)
    assert time.process_time() - started < 2  # a tenth of that; element by element, many times it


@pytest.mark.parametrize(
    ("text", "dtype", "expected"),
    [
        ("[9007199254740993, -9223372036854775808]", tf.int64, [2**53 + 1, -(2**63)]),
        ("[18446744073709551615]", tf.uint64, [2**64 - 1]),
        ("[1, 2.5]", tf.float32, [1, 2.5]),
        ("[16777217, 1435774380]", tf.float32, [16777216, 1435774336]),
        ("[9007199254740993, 18446744073709551615]", tf.float64, [2.0**53, 2.0**64]),
        ("[true, false]", tf.bool, [True, False]),
        ("[0, 255]", tf.uint8, [0, 255]),
        ("[1e39, NaN, Infinity, -Infinity]", tf.float32, [np.inf, np.nan, np.inf, -np.inf]),
        ("[1e300]", tf.float64, [1e300]),
        ('["\\u00e9", "a\\n"]', tf.string, ["é".encode(), b"a\n"]),
        ('[{"b64": "aGVsbG8="}, {"b64": "aGVsbG8"}]', tf.string, [b"hello", b"hello"]),
    ],
)
def test_values(text: str, dtype: tf.DType, expected: list):
    array = instances(text, dtype)
    assert array.dtype == dtype.as_numpy_dtype
    np.testing.assert_array_equal(array, np.array(expected, dtype.as_numpy_dtype))


@pytest.mark.parametrize(
    ("text", "dtype", "words"),
    [
        ("[1.0]", tf.int32, "1.0 Type: Number is not of expected type: int32"),
        ("[1, 2147483648]", tf.int32, "element: 1 .*2147483648 .*int32"),
        ("[-1]", tf.uint32, "-1 .*uint32"),
        ("[9223372036854775808]", tf.int64, "int64"),
        ("[20000000000000000000000]", tf.int64, "int64"),
        ("[true]", tf.float32, "Type: True .*float"),
        ("[1, true]", tf.int64, "element: 1 .*Type: True"),
        ('["1.5"]', tf.float32, "Type: String"),
        ("[null]", tf.float32, "Type: Null"),
        ("[1]", tf.string, "Type: Number"),
        ("[" * 66 + "1" + "]" * 66, tf.float32, "tensor parsing error: 65 dimensions"),
        ("[[1, 2], [3]]", tf.float32, "element: 1 .*shape"),
        ("[[1, [2]]]", tf.float32, "unexpected level"),
        ("[[[1], 2]]", tf.float32, "incorrect level"),
        ("[[[1], []]]", tf.float32, "unexpected size: 0"),
        ("[1, [2]]", tf.float32, "element: 1"),
        ('[{"x": 1.0}, 2.0]', tf.float32, "object but got value/list at item 1"),
        ('[2.0, {"x": 1.0}]', tf.float32, "value/list but got object at item 1"),
        ('[{"x": 1.0}, {}]', tf.float32, "element: 1 .*keys must be equal to: x"),
        ('[{"z": 1.0}]', tf.float32, "does not have named input: z"),
        ('[[{"b64": 3}]]', tf.string, "base64"),
        ('[{"b64": "-_-_"}]', tf.string, "base64 decode"),
        ('["\\ud800"]', tf.string, "surrogate"),
        ("[]", tf.float32, "No values"),
        ("1.0", tf.float32, "list/array"),
        ("[1e400]", tf.float32, "too big"),
    ],
)
def test_refused_instances_say_why(text: str, dtype: tf.DType, words: str):
    with pytest.raises(ServingError, match=words) as refused:
        instances(text, dtype)
    assert refused.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"inputs": [1.0]}', "a,b"),
        ('{"inputs": {"a": 1.0}}', "Missing named input: b"),
        ('{"instances": [1.0]}', "a,b"),
        ('{"instances": [{"b64": "YQ=="}]}', "a,b"),
        ('{"instances": [1.0], "inputs": [1.0]}', "only one of"),
        ("{}", "Missing 'inputs' or 'instances'"),
    ],
)
def test_refused_bodies_say_why(text: str, words: str):
    with pytest.raises(ServingError, match=words):
        read(text, a=tf.float32, b=tf.float32)


def test_a_signature_without_inputs_is_refused():
    with pytest.raises(ServingError, match="DEFAULT"):
        json_tensors.inputs({ROWS: [1.0]}, {})


def test_half_is_unimplemented_in_columns_and_invalid_in_rows():
    with pytest.raises(ServingError, match="half") as refused:
        read('{"inputs": [1.5]}', x=tf.float16)
    assert refused.value.code is Code.UNIMPLEMENTED
    with pytest.raises(ServingError, match="UNIMPLEMENTED") as refused:
        instances("[1.5]", tf.float16)
    assert refused.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(tf.float16, "half"), (tf.bfloat16, "bfloat16"), (tf.uint16, "uint16"), (tf.complex64, "")],
)
def test_what_json_has_no_numbers_for_is_not_written(dtype: tf.DType, name: str):
    array = np.ones(2, dtype.as_numpy_dtype)
    with pytest.raises(ServingError, match=f"JSON value for tensor type: {name}"):
        json_tensors.predictions({"y": array}, COLUMNS)
    assert json_tensors.predictions({"y": array[:0]}, COLUMNS) == b'{"outputs": []}'


def test_bytes_that_are_no_utf8_pass_through():
    array = read(b'{"inputs": ["\xff\x00"]}'.replace(b"\x00", b"\\u0000"), x=tf.string)["x"]
    assert array.tolist() == [b"\xff\x00"]
    assert b'"\xff\\u0000"' in json_tensors.predictions({"y": array}, COLUMNS)


def test_floats_print_their_shortest_digits_and_ints_none():
    outputs = {
        "single": np.array([0.7, 1, 2e-7, 0.1 + 0.2], np.float32),
        "double": np.array([1 / 3, 1e300]),
        "int": np.array([1], np.int64),
        "bool": np.array([True]),
    }
    text = json_tensors.predictions(outputs, COLUMNS).decode()
    assert json.loads(text, parse_float=str, parse_int=str)["outputs"] == {
        "single": ["0.7", "1.0", "2e-07", "0.3"],
        "double": ["0.3333333333333333", "1e+300"],
        "int": ["1"],
        "bool": [True],
    }


def test_infinity_and_nan_are_written_as_tokens():
    array = np.array([np.nan, np.inf, -np.inf], np.float32)
    assert b"[NaN, Infinity, -Infinity]" in json_tensors.predictions({"y": array}, ROWS)


def test_one_output_stands_alone_and_several_are_named():
    y, n = np.array([[1.0], [2.0]], np.float32), np.array([3, 4], np.int32)
    answers = {
        (ROWS, "y"): {"predictions": [[1.0], [2.0]]},
        (ROWS, "yn"): {"predictions": [{"y": [1.0], "n": 3}, {"y": [2.0], "n": 4}]},
        (COLUMNS, "y"): {"outputs": [[1.0], [2.0]]},
        (COLUMNS, "yn"): {"outputs": {"y": [[1.0], [2.0]], "n": [3, 4]}},
    }
    for (form, names), expected in answers.items():
        outputs = {name: {"y": y, "n": n}[name] for name in names}
        assert json.loads(json_tensors.predictions(outputs, form)) == expected


def test_outputs_named_bytes_are_base64():
    values = np.array([b"\xff\x00", b""], object)
    answer = json.loads(json_tensors.predictions({"a_bytes": values, "n": values[1:]}, COLUMNS))
    assert answer["outputs"] == {"a_bytes": [{"b64": "/wA="}, {"b64": ""}], "n": [""]}


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"y": np.array(1.0)}, "Tensor name: y has no shape"),
        ({"y": np.zeros(2), "z": np.zeros(3)}, "Tensor name: z has inconsistent batch size: 3"),
        ({"y": np.zeros(2, np.complex64)}, "complex64"),
    ],
)
def test_outputs_that_rows_cannot_hold(outputs: dict, words: str):
    with pytest.raises(ServingError, match=words):
        json_tensors.predictions(outputs, ROWS)
