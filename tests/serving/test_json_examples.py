import json

import numpy as np
import pytest
import tensorflow as tf

from serving import json_examples, json_text
from serving.errors import Code, ServingError


def parsed_example(text: str) -> dict:
    (data,) = json_examples.examples(json_text.parse(text.encode()))
    return json.loads(json.dumps(features(data)))


def features(data: bytes) -> dict:
    found = {}
    for name, feature in tf.train.Example.FromString(data).features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = (kind, [str(v) for v in getattr(feature, kind).value] if kind else [])
    return found


def test_examples_take_their_kind_from_the_values():
    text = '{"examples": [{"f": 1.5, "i": [2, 3], "b": true, "s": "é", "e": {"b64": "/w=="}}]}'
    assert parsed_example(text) == {
        "f": ["float_list", ["1.5"]],
        "i": ["int64_list", ["2", "3"]],
        "b": ["int64_list", ["1"]],
        "s": ["bytes_list", [str("é".encode())]],
        "e": ["bytes_list", [str(b"\xff")]],
    }


def test_an_example_s_own_features_replace_the_context_s():
    body = json_text.parse(b'{"context": {"x": 4.0, "y": 1}, "examples": [{}, {"x": 2.0}]}')
    context, own = map(features, json_examples.examples(body))
    assert context == {"x": ("float_list", ["4.0"]), "y": ("int64_list", ["1"])}
    assert own == {"x": ("float_list", ["2.0"]), "y": ("int64_list", ["1"])}


def test_of_a_feature_that_comes_twice_the_last_counts():
    assert parsed_example('{"examples": [{"x": 1.0, "x": 2.0}]}') == {"x": ["float_list", ["2.0"]]}
    assert parsed_example('{"examples": [{}], "context": {"x": 1, "x": 2}, "context": 3}') == {
        "x": ["int64_list", ["2"]]
    }


def test_an_integer_below_all_is_a_double():
    text = '{"examples": [{"x": [-9223372036854775809, 1.0], "y": -9223372036854775808}]}'
    assert parsed_example(text) == {
        "x": ["float_list", ["-9.223372036854776e+18", "1.0"]],
        "y": ["int64_list", ["-9223372036854775808"]],
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "'examples' is expected"),
        ('{"examples": [{"x": null, "x": 1}]}', "Feature: x .*Null"),
        ('{"examples": [{"x": {"b64": "", "b64": ""}}]}', "Feature: x .*Object"),
        ('{"examples": {}}', "list/array"),
        ('{"examples": []}', "empty array"),
        ('{"examples": [1]}', "must be JSON object but got JSON Number"),
        ('{"examples": [{"x": null}]}', "Feature: x .*Null"),
        ('{"examples": [{"x": [[1.0]]}]}', "Feature: x .*Array"),
        ('{"examples": [{"x": {"a": 1}}]}', "Feature: x .*Object"),
        ('{"examples": [{"x": [1.0, "a"]}]}', "feature: x expecting type: float"),
        ('{"examples": [{"x": [1, 1.5]}]}', "feature: x expecting type: int64"),
        ('{"examples": [{"x": 9223372036854775808}]}', "uint64"),
        ('{"examples": [{"\\ud800": 1}]}', "UTF-8"),
        ('{"examples": [{}], "context": 1}', "must be JSON object"),
    ],
)
def test_refused_examples(text: str, words: str):
    with pytest.raises(ServingError, match=words) as refused:
        json_examples.examples(json_text.parse(text.encode()))
    assert refused.value.code is Code.INVALID_ARGUMENT


def test_results_of_classify_and_regress():
    score = float(np.float32(0.7))
    answer = json_examples.classifications([[("low", score), ("é", 1.0)], []])
    assert answer == '{"results": [[["low", 0.7], ["é", 1.0]], []]}'.encode()
    assert json_examples.regressions([score, 4.0]) == b'{"results": [0.7, 4.0]}'
