"""The REST API's predict bodies <-> numpy tensors.

Numbers go through numpy as one flat list, so that an image of nested lists takes milliseconds.
"""

import base64
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from serving.errors import Code, ServingError, invalid_argument
from serving.json_text import (
    dump,
    is_named,
    refused,
    shortest,
    show,
    signature_name,
    to_bytes,
    type_name,
)

MAX_DIMENSIONS = 64  # numpy's
ROWS, COLUMNS = "instances", "inputs"
_ANSWER_KEYS = {ROWS: "predictions", COLUMNS: "outputs"}


# dtype -> the JSON values that it takes, and is written as.
_TYPES: dict[int, set[type]] = {
    types_pb2.DT_FLOAT: {int, float},
    types_pb2.DT_DOUBLE: {int, float},
    types_pb2.DT_BOOL: {bool},
    types_pb2.DT_STRING: {str, dict},
} | {
    types_pb2.DataType.Value(f"DT_{name}"): {int}
    for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT32", "UINT64")
}


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
        raise refused(
            body, f"Not formatted correctly expecting only one of '{COLUMNS}' or '{ROWS}' keys"
        )
    dtypes = {name: infos[name].dtype for name in sorted(infos)}
    if ROWS in body:
        return _from_rows(body, dtypes), ROWS
    if COLUMNS in body:
        return _from_columns(body[COLUMNS], dtypes), COLUMNS
    raise invalid_argument(f"Missing '{COLUMNS}' or '{ROWS}' key")


def _from_columns(value: Any, dtypes: dict[str, int]) -> dict[str, np.ndarray]:
    if not is_named(value):
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
        raise refused(body, f"Expecting '{ROWS}' to be an list/array")
    if not rows:
        raise refused(body, f"No values in '{ROWS}' array")
    if not is_named(rows[0]) and len(dtypes) > 1:
        raise invalid_argument(
            f"instances is a plain list, but objects with the keys {','.join(dtypes)} are expected"
        )
    named = is_named(rows[0])
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
        if is_named(row) != named:
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
                f"{show(row)} keys must be equal to: {','.join(dtypes)}"
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
    types = _TYPES.get(dtype)
    if types is None and flat:
        raise ServingError(
            Code.UNIMPLEMENTED,
            f"Conversion of JSON Value: {show(flat[0])} to type: {_dtype_name(dtype)}",
        )
    if types and not set(map(type, flat)) <= types:
        raise _wrong_type(next(x for x in flat if type(x) not in types), dtype)
    if dtype == types_pb2.DT_STRING:
        flat = [to_bytes(x) for x in flat]
    if len(shape) > MAX_DIMENSIONS:
        raise invalid_argument(f"tensor parsing error: {len(shape)} dimensions")
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
            raise refused(odd, f"found at incorrect level: {len(shape) + 1} in the JSON DOM")
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


def _dtype_name(dtype: int) -> str:
    return types_pb2.DataType.Name(dtype)[3:].lower()


def _wrong_type(value: Any, dtype: int) -> ServingError:
    return refused(value, f"Type: {type_name(value)} is not of expected type: {_dtype_name(dtype)}")


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
    return dump({_ANSWER_KEYS[form]: values})


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
    if dtype.as_datatype_enum not in _TYPES and array.size:
        name = _dtype_name(dtype.as_datatype_enum)
        raise invalid_argument(f"Failed to write JSON value for tensor type: {name}")
    if dtype == tf.string:
        write: Callable[[bytes], Any] = _base64_object if name.endswith("_bytes") else _decode
        return np.frompyfunc(write, 1, 1)(array).tolist() if array.ndim else write(array.item())
    return shortest(array) if dtype.is_floating else array.tolist()


def _base64_object(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode()}


def _decode(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
