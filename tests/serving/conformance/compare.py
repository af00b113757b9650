"""How an answer differs from the recorded one.

Both are brought to plain values first: what may differ (an error's text, how a tensor is packed) is
left out of them.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import Message
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import get_model_metadata_pb2

TOLERANCE = 1e-5


def plain(message: Message, encoding: bool = False) -> Any:
    """A message as plain values; of tensors, with `encoding`, also whether they are packed."""
    if isinstance(message, tensor_pb2.TensorProto):
        # TensorFlow's own reader: make_ndarray has no packed strings.
        tensor = tf.io.parse_tensor(message.SerializeToString(), message.dtype)
        array = np.asarray(tensor.numpy())
        packed = bool(message.tensor_content) if encoding else None
        return [message.dtype, list(array.shape), array.ravel().tolist(), packed]
    name = message.DESCRIPTOR.full_name
    if name == "google.protobuf.Any":
        inner = get_model_metadata_pb2.SignatureDefMap.FromString(message.value)
        return [message.type_url, plain(inner)]
    if name.endswith("StatusProto"):  # an error is an error
        return [bool(getattr(message, field.name)) for field in message.DESCRIPTOR.fields]
    return {field.name: _field(field, value, encoding) for field, value in message.ListFields()}


def _field(field, value, encoding: bool) -> Any:
    if not field.message_type:
        return list(value) if field.is_repeated else value
    if field.message_type.GetOptions().map_entry:
        of_messages = field.message_type.fields_by_name["value"].message_type
        return {key: plain(value[key], encoding) if of_messages else value[key] for key in value}
    return (
        [plain(each, encoding) for each in value] if field.is_repeated else plain(value, encoding)
    )


def differences(want: Any, got: Any, tolerance: float, at: str = "") -> Iterator[str]:
    """What differs, place by place; 1 and 1.0 do."""
    if type(want) is not type(got):
        yield f"{at}: {got!r}, want {want!r}"
    elif isinstance(want, dict):
        if want.keys() != got.keys():
            yield f"{at}: keys {sorted(got)}, want {sorted(want)}"
        for key in want.keys() & got.keys():
            if key in ("error_message", "error_code"):
                if (want[key] in ("", "OK")) != (got[key] in ("", "OK")):
                    yield f"{at}.{key}: {got[key]!r}, want {want[key]!r}"
            else:
                yield from differences(want[key], got[key], tolerance, f"{at}.{key}")
    elif isinstance(want, list):
        if len(want) != len(got):
            yield f"{at}: {len(got)} entries, want {len(want)}"
        for number, (a, b) in enumerate(zip(want, got, strict=False)):
            yield from differences(a, b, tolerance, f"{at}[{number}]")
    elif not _same(want, got, tolerance):
        yield f"{at}: {got!r}, want {want!r}"


def _same(want: Any, got: Any, tolerance: float) -> bool:
    if not isinstance(want, float) or not math.isfinite(want) or not math.isfinite(got):
        return want == got or (want != want and got != got)  # noqa: PLR0124
    return abs(want - got) <= tolerance * max(1.0, abs(want), abs(got))


def lacking(words: list[str], text: str) -> Iterator[str]:
    """The words that a message should have and has not."""
    for word in words:
        if word.lower() not in text.lower():
            yield f"{word!r} is not in {text[:300]!r}"


def body_differences(want: str, got: str, rule: dict[str, Any]) -> Iterator[str]:
    """Of two bodies of HTTP responses."""
    mode, words = rule.get("body", "json"), rule.get("words", [])
    if mode == "words":
        yield from lacking(words, got)
    elif mode == "error":
        body = json.loads(got)
        if not isinstance(body, dict) or set(body) != {"error"}:
            yield f'no {{"error": text}}: {got[:300]}'
        else:
            yield from lacking(words, body["error"])
    elif mode == "json":
        tolerance = rule.get("tolerance", TOLERANCE)
        yield from differences(json.loads(want), json.loads(got), tolerance, "$")
        yield from lacking(words, got)
