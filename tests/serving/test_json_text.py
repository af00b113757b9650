import math

import pytest

from serving import json_text
from serving.errors import Code, ServingError


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "document is empty"),
        (b" \n", "document is empty"),
        (b"[1]", "not object"),
        (b'{"a": [1', "JSON Parse error"),
        (b'{"a": 1 /* c */}', "JSON Parse error"),
        (b'{"a": 1e400}', "too big"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too big"),
        (b'{"a": ' + b"[" * 100_000, "nested too deep"),
        (b'{"a": "' + b'\\"' * 1_000_000, "JSON Parse error"),
        (b'{"a": Inform}', "JSON Parse error"),
    ],
)
def test_refused_json(data: bytes, words: str):
    with pytest.raises(ServingError, match=words) as refused:
        json_text.parse(data)
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert len(refused.value.message) < 500


def test_json_as_rapidjson_reads_it():
    assert json_text.parse(b'\xef\xbb\xbf {"a": 1} and more') == {"a": 1}
    assert json_text.parse(b'{"a": 1, "b": 2, "a": 3}') == {"a": 1, "b": 2}
    exact = json_text.parse(b'{"a": 18446744073709551615, "b": 18446744073709551616}')
    assert (exact["a"], type(exact["b"])) == (2**64 - 1, float)
    text = b'{"a": [Inf, -Inf, Infinity, -Infinity], "b": [NaN, -NaN], "c": "-NaN \\" Inf"}'
    short = json_text.parse(text)
    assert short["a"] == [math.inf, -math.inf, math.inf, -math.inf]
    assert all(map(math.isnan, short["b"]))
    assert short["c"] == '-NaN " Inf'


def test_a_signature_name_is_a_string():
    assert json_text.signature_name({}) == ""
    assert json_text.signature_name({"signature_name": "s"}) == "s"
    with pytest.raises(ServingError, match="signature_name"):
        json_text.signature_name({"signature_name": 3})
