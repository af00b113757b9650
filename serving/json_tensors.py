"""The REST API's JSON <-> numpy tensors and serialized tf.Examples.

What is accepted, and the words of what is refused, are TensorFlow Serving's (util/json_tensor.cc);
numbers go through numpy as one flat list, so that an image of nested lists takes milliseconds.
"""

import base64
import binascii
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from serving.errors import Code, ServingError, invalid_argument

ROWS, COLUMNS = "instances", "inputs"
_ANSWER_KEYS = {ROWS: "predictions", COLUMNS: "outputs"}
_WHITE_SPACE = " \t\r\n"
_SHOWN = 200  # characters of a refused value; a body may be megabytes
_MAX_UINT64 = 2**64 - 1

# Only such numbers can overflow a double, or be integers that none of the dtypes hold. Looking for
# them is cheap; reading every number of a body by a function of ours is not.
_NEEDS_CARE = re.compile(r"[eE]\+?\d{3}|\d{20}")


class _Kind(NamedTuple):
    """What JSON values an input's dtype takes."""

    types: frozenset[type]
    largest: int | None = None  # integer that a float stands for without loss


_NUMBERS, _INTEGERS = frozenset({int, float}), frozenset({int})
_KINDS = {
    types_pb2.DT_FLOAT: _Kind(_NUMBERS, 2**24 - 1),
    types_pb2.DT_DOUBLE: _Kind(_NUMBERS, 2**53 - 1),
    types_pb2.DT_BOOL: _Kind(frozenset({bool})),
    types_pb2.DT_STRING: _Kind(frozenset({str, dict})),
} | {
    types_pb2.DataType.Value(f"DT_{name}"): _Kind(_INTEGERS)
    for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT32", "UINT64")
}
_TYPE_NAMES = {
    type(None): "Null",
    dict: "Object",
    list: "Array",
    str: "String",
    int: "Number",
    float: "Number",
}


# ---------------------------------------------------------------------------------------- parsing


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        found |= dict(reversed(pairs))
    return found


def _checked_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise invalid_argument(
            f"JSON Parse error: Number too big to be stored in double: {text[:_SHOWN]}"
        )
    return value


def _checked_int(text: str) -> int | float:
    """An integer, or a double where no integer dtype is wide enough."""
    if len(text) <= 20 and -(2**63) <= int(text) <= _MAX_UINT64:
        return int(text)
    return _checked_float(text)


_FAST = json.JSONDecoder(object_pairs_hook=_first_wins)
_CAREFUL = json.JSONDecoder(
    object_pairs_hook=_first_wins, parse_float=_checked_float, parse_int=_checked_int
)


def parse(data: bytes) -> dict[str, Any]:
    """A request's JSON object. What follows the object is ignored, and NaN and Infinity are read.

    Raises:
        ServingError: INVALID_ARGUMENT, when it is no JSON or no object.
    """
    # Strings may hold any bytes; they come out of `_encode` as they were.
    text = data.decode("utf-8-sig", "surrogateescape")
    start = len(text) - len(text.lstrip(_WHITE_SPACE))
    if start == len(text):
        raise invalid_argument("JSON Parse error: The document is empty")
    decoder = _CAREFUL if _NEEDS_CARE.search(text) else _FAST
    try:
        value, _ = decoder.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise invalid_argument(f"JSON Parse error: {error.msg} at offset: {error.pos}") from error
    except RecursionError as error:
        raise invalid_argument("JSON Parse error: Lists or objects are nested too deep") from error
    if not isinstance(value, dict):
        raise _refused(value, "Is not object")
    return value


def signature_name(body: dict[str, Any]) -> str:
    """The signature that a body asks for; empty for the default.

    Raises:
        ServingError: INVALID_ARGUMENT, when it is no string.
    """
    name = body.get("signature_name", "")
    if not isinstance(name, str):
        raise _refused(body, "not formatted correctly. 'signature_name' key must be a string value")
    return name


def _show(value: Any) -> str:
    # A list of a million is not written out to be cut off.
    if isinstance(value, list) and len(value) > _SHOWN:
        value = value[:_SHOWN]
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _refused(value: Any, why: str) -> ServingError:
    return invalid_argument(f"JSON Value: {_show(value)} {why}")


def _type_name(value: Any) -> str:
    return str(value) if isinstance(value, bool) else _TYPE_NAMES[type(value)]


# ---------------------------------------------------------------------------------------- predict


def inputs(
    body: dict[str, Any], infos: Mapping[str, meta_graph_pb2.TensorInfo]
) -> tuple[dict[str, np.ndarray], str]:
    """The tensors of a predict body, and its form: ROWS or COLUMNS.

    Args:
        body: as parsed.
        infos: the signature's inputs by name.

    Raises:
        ServingError: INVALID_ARGUMENT, or in columns UNIMPLEMENTED for dtypes that JSON has not.
    """
    if not infos:
        signature = signature_name(body) or "DEFAULT"
        raise invalid_argument(f"Failed to get input map for signature: {signature}")
    if ROWS in body and COLUMNS in body:
        raise _refused(
            body, f"Not formatted correctly expecting only one of '{COLUMNS}' or '{ROWS}' keys"
        )
    dtypes = {name: infos[name].dtype for name in sorted(infos)}
    if ROWS in body:
        return _from_rows(body, dtypes), ROWS
    if COLUMNS in body:
        return _from_columns(body[COLUMNS], dtypes), COLUMNS
    raise invalid_argument(f"Missing '{COLUMNS}' or '{ROWS}' key")


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _from_columns(value: Any, dtypes: dict[str, int]) -> dict[str, np.ndarray]:
    if not _is_named(value):
        if len(dtypes) > 1:
            raise invalid_argument(
                f"inputs is a plain value/list, but an object with the keys {','.join(dtypes)} is "
                "expected"
            )
        value = dict.fromkeys(dtypes, value)
    for name in dtypes:
        if name not in value:
            raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
    return {name: _tensor(value[name], dtype) for name, dtype in dtypes.items()}


def _from_rows(body: dict[str, Any], dtypes: dict[str, int]) -> dict[str, np.ndarray]:
    rows = body[ROWS]
    if not isinstance(rows, list):
        raise _refused(body, f"Expecting '{ROWS}' to be an list/array")
    if not rows:
        raise _refused(body, f"No values in '{ROWS}' array")
    if not isinstance(rows[0], dict) and len(dtypes) > 1:
        raise invalid_argument(
            f"instances is a plain list, but objects with the keys {','.join(dtypes)} are expected"
        )
    named = _is_named(rows[0])
    try:
        return _whole_rows(rows, dtypes, named)
    except (ServingError, KeyError, TypeError) as error:
        # Only now, for the message, element by element.
        _check_rows(rows, dtypes, named)
        raise invalid_argument(f"Failed to process the 'instances' list: {error}") from error


def _whole_rows(rows: list[Any], dtypes: dict[str, int], named: bool) -> dict[str, np.ndarray]:
    if not named:
        return {name: _tensor(rows, dtype) for name, dtype in dtypes.items()}
    if any(row.keys() != dtypes.keys() for row in map(dict, rows)):
        raise KeyError("an element with other keys")
    return {name: _tensor([row[name] for row in rows], dtype) for name, dtype in dtypes.items()}


def _check_rows(rows: list[Any], dtypes: dict[str, int], named: bool) -> None:
    """Refuse the first element that does not fit."""
    shapes: dict[str, tuple[int, ...]] = {}
    kinds = ("object", "value/list") if named else ("value/list", "object")
    for number, row in enumerate(rows):
        if _is_named(row) != named:
            raise invalid_argument(
                f"Expecting {kinds[0]} but got {kinds[1]} at item {number} of input list"
            )
        items = row.items() if named else [(next(iter(dtypes)), row)]
        for name, value in items:
            try:
                _check_item(name, value, dtypes, shapes)
            except ServingError as error:
                key = f" key: {name}" if named else ""
                raise invalid_argument(
                    f"Failed to process element: {number}{key} of 'instances' list. Error: "
                    f"{error.code.name}: {error.message}"
                ) from error
        if named and row.keys() != dtypes.keys():
            raise invalid_argument(
                f"Failed to process element: {number} of 'instances' list. JSON object: "
                f"{_show(row)} keys must be equal to: {','.join(dtypes)}"
            )


def _check_item(
    name: str, value: Any, dtypes: dict[str, int], shapes: dict[str, tuple[int, ...]]
) -> None:
    if name not in dtypes:
        raise invalid_argument(f"JSON object: does not have named input: {name}")
    shape = _tensor(value, dtypes[name]).shape
    expected = shapes.setdefault(name, shape)
    if shape != expected:
        raise invalid_argument(f"Expecting shape {list(expected)} but got: {list(shape)}")


def _tensor(value: Any, dtype: int) -> np.ndarray:
    """A value or nested lists as an array; strings as an object array of bytes."""
    shape, flat = _flatten(value)
    kind = _KINDS.get(dtype)
    if kind is None and flat:
        raise ServingError(
            Code.UNIMPLEMENTED,
            f"Conversion of JSON Value: {_show(flat[0])} to type: {_dtype_name(dtype)}",
        )
    types = set(map(type, flat))
    if kind and not types <= kind.types:
        raise _wrong_type(next(x for x in flat if type(x) not in kind.types), dtype)
    if kind and kind.largest and int in types:
        _check_lossless(flat, kind.largest, dtype)
    if dtype == types_pb2.DT_STRING:
        flat = [_bytes(x) for x in flat]
    try:
        with np.errstate(over="ignore"):  # 1e39 is a float32's infinity
            return np.array(flat, tf.as_dtype(dtype).as_numpy_dtype).reshape(shape)
    except OverflowError as error:
        limits = np.iinfo(tf.as_dtype(dtype).as_numpy_dtype)
        beyond = next(x for x in flat if not limits.min <= x <= limits.max)
        raise _wrong_type(beyond, dtype) from error


def _flatten(value: Any) -> tuple[list[int], list[Any]]:
    """The shape of nested lists, and their values in order."""
    shape: list[int] = []
    flat = [value]
    while flat and isinstance(flat[0], list):
        size = len(flat[0])
        if set(map(type, flat)) != {list}:
            odd = next(x for x in flat if not isinstance(x, list))
            raise _refused(odd, f"found at incorrect level: {len(shape) + 1} in the JSON DOM")
        if set(map(len, flat)) != {size}:
            other = next(len(x) for x in flat if len(x) != size)
            raise invalid_argument(
                f"Encountered list at unexpected size: {other} at level: {len(shape)} expected "
                f"size: {size}"
            )
        shape.append(size)
        flat = list(itertools.chain.from_iterable(flat))
    if list in set(map(type, flat)):
        raise invalid_argument(
            f"Encountered list at unexpected level: {len(shape)} expected < {len(shape)}"
        )
    return shape, flat


def _check_lossless(flat: list[Any], largest: int, dtype: int) -> None:
    if max(map(abs, flat)) <= largest:  # nearly always; false with a NaN too
        return
    for value in flat:
        if isinstance(value, int) and abs(value) > largest:
            raise invalid_argument(
                f"Cannot convert JSON value: {value} to {_dtype_name(dtype)} without loss of "
                "precision."
            )


def _dtype_name(dtype: int) -> str:
    return types_pb2.DataType.Name(dtype)[3:].lower()


def _wrong_type(value: Any, dtype: int) -> ServingError:
    return _refused(
        value, f"Type: {_type_name(value)} is not of expected type: {_dtype_name(dtype)}"
    )


def _bytes(value: str | dict[str, Any]) -> bytes:
    if isinstance(value, str):
        return _encode(value)
    if not _is_base64(value):
        raise _refused(value, "not formatted correctly for base64 data")
    text = "".join(value["b64"].split())
    if "=" not in text:
        text += "=" * (-len(text) % 4)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid_argument("Unable to base64 decode") from error


def _encode(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise invalid_argument(
            "JSON Parse error: The surrogate pair in string is invalid."
        ) from error


def predictions(outputs: Mapping[str, np.ndarray], form: str) -> bytes:
    """The answer to a predict request of a form.

    Raises:
        ServingError: INVALID_ARGUMENT, when rows are asked for and an output has none.
    """
    if form == ROWS:
        _check_batch(outputs)
    values: Any = {name: _plain(name, array) for name, array in outputs.items()}
    if len(values) == 1:
        (values,) = values.values()
    elif form == ROWS:
        values = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return _dump({_ANSWER_KEYS[form]: values})


def _check_batch(outputs: Mapping[str, np.ndarray]) -> None:
    expected: int | None = None
    for name, array in outputs.items():
        if not array.ndim:
            raise invalid_argument(f"Tensor name: {name} has no shape information ")
        if expected is not None and len(array) != expected:
            raise invalid_argument(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: "
                f"{expected}"
            )
        expected = len(array)


def _plain(name: str, array: np.ndarray) -> Any:
    """An array as JSON's nested lists."""
    dtype = tf.as_dtype(array.dtype) if array.dtype != object else tf.string
    if dtype == tf.string:
        write: Callable[[bytes], Any] = _base64_object if name.endswith("_bytes") else _decode
        return np.frompyfunc(write, 1, 1)(array).tolist() if array.ndim else write(array.item())
    if dtype.is_floating:
        return _shortest(array)
    if dtype.is_integer or dtype.is_bool:
        return array.tolist()
    raise invalid_argument(f"Failed to write JSON value for tensor type: {dtype.name}")


def _shortest(array: np.ndarray) -> Any:
    """Doubles that print with the digits of the array's own precision: 0.7, not 0.699999988."""
    if array.dtype != np.float64:
        array = array.astype(np.float32).astype("S32").astype(np.float64)
    return array.tolist()


def _base64_object(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode()}


def _decode(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _dump(value: Any) -> bytes:
    return _encode(json.dumps(value, ensure_ascii=False))


# ------------------------------------------------------------------------------- classify, regress


def examples(body: dict[str, Any]) -> list[bytes]:
    """The serialized tf.Examples of a classify or regress body.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    context = _example(body["context"]) if "context" in body else b""
    if "examples" not in body:
        raise _refused(body, "key 'examples' is expected and was not found")
    if not isinstance(body["examples"], list):
        raise _refused(body, "Expecting 'examples' value to be an list/array")
    if not body["examples"]:
        raise _refused(body, "'examples' value is an empty array")
    # One protobuf after another is their union: an example's own features replace the context's.
    return [context + _example(value) for value in body["examples"]]


def _example(value: Any) -> bytes:
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {_type_name(value)}")
    features = {name: _feature(name, content) for name, content in value.items()}
    try:
        example = tf.train.Example(features=tf.train.Features(feature=features))
    except (UnicodeEncodeError, ValueError) as error:
        raise invalid_argument("Names of features must be valid UTF-8") from error
    return example.SerializeToString()


def _bytes_feature(values: list[Any]) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=map(_bytes, values)))


def _float_feature(values: list[float]) -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def _int_feature(values: list[int]) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


_FEATURES: dict[type, tuple[str, Callable[[list[Any]], tf.train.Feature]]] = {
    str: ("bytes", _bytes_feature),
    dict: ("bytes", _bytes_feature),
    float: ("float", _float_feature),
    int: ("int64", _int_feature),
    bool: ("int64", _int_feature),
}


def _feature(name: str, content: Any) -> tf.train.Feature:
    values = content if isinstance(content, list) else [content]
    for value in values:
        if type(value) not in _FEATURES or _is_named(value):
            raise invalid_argument(
                f"Feature: {name} has element with unexpected JSON type: {_type_name(value)}"
            )
        expected = _FEATURES[type(values[0])][0]
        if _FEATURES[type(value)][0] != expected:
            raise invalid_argument(
                f"Unexpected element type in feature: {name} expecting type: {expected}"
            )
        if isinstance(value, int) and value >= 2**63:
            raise invalid_argument(f"Feature: {name} has uint64 element. Only int64 is supported.")
    return _FEATURES[type(values[0])][1](values) if values else tf.train.Feature()


def classifications(results: Iterable[Sequence[tuple[str, float]]]) -> bytes:
    """The answer to a classify request: labels and scores of each example."""
    shortest = functools.partial(np.array, dtype=np.float32)
    return _dump(
        {
            "results": [
                [[name, _shortest(shortest(score))] for name, score in labels] for labels in results
            ]
        }
    )


def regressions(values: Sequence[float]) -> bytes:
    """The answer to a regress request: a number for each example."""
    return _dump({"results": _shortest(np.array(values, np.float32))})
