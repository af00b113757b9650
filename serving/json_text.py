"""The REST API's JSON: a body parsed as RapidJSON parses it for TensorFlow Serving, and written.

What is accepted, and the words of what is refused, are TensorFlow Serving's (util/json_tensor.cc).
"""

import base64
import binascii
import json
import re
from typing import Any

import numpy as np

from serving.errors import ServingError, invalid_argument

_WHITE_SPACE = " \t\r\n"
_SHOWN = 200  # characters of a refused value; a body may be megabytes
_MAX_UINT64 = 2**64 - 1

# Only such numbers can overflow a double, or be integers that none of the dtypes hold. Looking for
# them is cheap; reading every number of a body by a function of ours is not.
_NEEDS_CARE = re.compile(r"[eE]\+?\d{3}|\d{20}|-\d{19}")
# RapidJSON reads Inf and -NaN too. A string that does not end is one, so that it is read once.
_SPELLINGS = re.compile(r'"(?:[^"\\]|\\.)*+"?|-NaN|Inf(?:inity)?')
_SPELLED_OUT = {"Inf": "Infinity", "-NaN": "NaN"}


class Repeating(dict):
    """An object in which a name comes twice: the first value counts, where nobody reads `pairs`."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(dict(pairs) | dict(reversed(pairs)))
        self.pairs = pairs


_TYPE_NAMES = {
    type(None): "Null",
    dict: "Object",
    Repeating: "Object",
    list: "Array",
    str: "String",
    int: "Number",
    float: "Number",
}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else Repeating(pairs)


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


_FAST = json.JSONDecoder(object_pairs_hook=_object)
_CAREFUL = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_checked_float, parse_int=_checked_int
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
        try:
            value, _ = decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            value, _ = decoder.raw_decode(_SPELLINGS.sub(_spell_out, text), start)
    except json.JSONDecodeError as error:
        raise invalid_argument(f"JSON Parse error: {error.msg} at offset: {error.pos}") from error
    except RecursionError as error:
        raise invalid_argument("JSON Parse error: Lists or objects are nested too deep") from error
    if not isinstance(value, dict):
        raise refused(value, "Is not object")
    return value


def _spell_out(match: re.Match[str]) -> str:
    return _SPELLED_OUT.get(match[0], match[0])


def signature_name(body: dict[str, Any]) -> str:
    """The signature that a body asks for; empty for the default.

    Raises:
        ServingError: INVALID_ARGUMENT, when it is no string.
    """
    name = body.get("signature_name", "")
    if not isinstance(name, str):
        raise refused(body, "not formatted correctly. 'signature_name' key must be a string value")
    return name


def show(value: Any) -> str:
    # A list of a million is not written out to be cut off.
    if isinstance(value, list) and len(value) > _SHOWN:
        value = value[:_SHOWN]
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def refused(value: Any, why: str) -> ServingError:
    return invalid_argument(f"JSON Value: {show(value)} {why}")


def type_name(value: Any) -> str:
    return str(value) if isinstance(value, bool) else _TYPE_NAMES[type(value)]


def is_base64(value: Any) -> bool:
    return type(value) is dict and len(value) == 1 and isinstance(value.get("b64"), str)


def is_named(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def to_bytes(value: str | dict[str, Any]) -> bytes:
    if isinstance(value, str):
        return encode(value)
    if not is_base64(value):
        raise refused(value, "not formatted correctly for base64 data")
    text = "".join(value["b64"].split())
    if "=" not in text:
        text += "=" * (-len(text) % 4)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid_argument("Unable to base64 decode") from error


def encode(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise invalid_argument(
            "JSON Parse error: The surrogate pair in string is invalid."
        ) from error


def shortest(array: np.ndarray) -> Any:
    """Doubles that print with the digits of the array's own precision: 0.7, not 0.699999988."""
    if array.dtype != np.float64:
        array = array.astype(np.float32).astype("S32").astype(np.float64)
    return array.tolist()


def dump(value: Any) -> bytes:
    return encode(json.dumps(value, ensure_ascii=False))
