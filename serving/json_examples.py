"""The REST API's classify and regress bodies -> serialized tf.Examples, and the answers to them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from serving.errors import invalid_argument
from serving.json_text import Repeating, dump, is_named, refused, shortest, to_bytes, type_name


def examples(body: dict[str, Any]) -> list[bytes]:
    """The serialized tf.Examples of a classify or regress body.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    context = _example(body["context"]) if "context" in body else b""
    if "examples" not in body:
        raise refused(body, "key 'examples' is expected and was not found")
    if not isinstance(body["examples"], list):
        raise refused(body, "Expecting 'examples' value to be an list/array")
    if not body["examples"]:
        raise refused(body, "'examples' value is an empty array")
    # One protobuf after another is their union: an example's own features replace the context's.
    return [context + _example(value) for value in body["examples"]]


def _example(value: Any) -> bytes:
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {type_name(value)}")
    pairs = value.pairs if isinstance(value, Repeating) else value.items()
    features = {name: _feature(name, content) for name, content in pairs}  # the last one counts
    try:
        example = tf.train.Example(features=tf.train.Features(feature=features))
    except (UnicodeEncodeError, ValueError) as error:
        raise invalid_argument("Names of features must be valid UTF-8") from error
    return example.SerializeToString()


def _bytes_feature(values: list[Any]) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=map(to_bytes, values)))


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
        if type(value) not in _FEATURES or is_named(value):
            raise invalid_argument(
                f"Feature: {name} has element with unexpected JSON type: {type_name(value)}"
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
    return dump(
        {
            "results": [
                [[name, shortest(np.array(score, np.float32))] for name, score in labels]
                for labels in results
            ]
        }
    )


def regressions(values: Sequence[float]) -> bytes:
    """The answer to a regress request: a number for each example."""
    return dump({"results": shortest(np.array(values, np.float32))})
