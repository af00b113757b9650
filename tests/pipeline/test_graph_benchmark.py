"""Real workers for decoding and for the smallest part of inference; goals on made-up rates.

.ci/run measures too, so that the workers are in `make test-slow`.
"""

import dataclasses
from pathlib import Path

import pytest

from pipeline import inference_graph
from pipeline.errors import PipelineError
from pipeline.graph_benchmark import compare, inputs, tensorflow_worker
from pipeline.training_benchmark.compare import measure
from pipeline.training_benchmark.report import Result, Row


def test_no_bias_is_dropped_as_a_fresh_networks_would_be():
    folded = inference_graph.fold(tensorflow_worker.network())
    assert len(folded) == 57
    assert all(convolution.bias.all() for convolution in folded.values())


@pytest.mark.slow
def test_decoding_is_measured():
    result = measure("decoding", compare.DECODING, rounds=1, seconds=0.05)
    assert not result.failures
    text = "\n".join(compare._decoding_section(result))
    assert "1 photo " in text
    assert "32 photos " in text
    assert text.count("goal ≤ 1.15: ") == 2


@pytest.mark.slow
def test_inference_is_measured_and_what_fails_is_left_out():
    int8 = compare.configurations(Path("none"), peers=False)[-1]
    one = dataclasses.replace(int8, data=(inputs.rows(1),))
    broken = dataclasses.replace(one, name="broken", settings={"precision": "int1"})
    result = measure("inference", [one, broken], rounds=1, seconds=0.05)
    ((row, rates),) = result.rates.items()
    assert row == Row("TensorFlow int8", "TensorFlow", "batch 1")
    assert rates[0] > 1
    assert list(result.failures) == ["broken"]


def test_goals_are_judged_by_the_best_peer_of_the_precision():
    rates = {
        ("TensorFlow fp32", "TensorFlow"): [10.0, 10.0, 12.0],
        ("ONNX Runtime fp32", "ONNX Runtime"): [8.0, 8.0, 8.0],
        ("OpenVINO fp32", "OpenVINO"): [10.0, 10.0, 10.0],
        ("OpenVINO int8", "OpenVINO"): [90.0, 90.0, 90.0],
    }
    result = Result("made", {Row(*names, "batch 8"): rate for names, rate in rates.items()})
    text = "\n".join(compare._section(result, 8))
    assert "TensorFlow fp32 ÷ OpenVINO fp32: 1.000 (1.000 to 1.200); goal 1.0: met" in text
    assert "int8 ÷" not in text


@pytest.mark.parametrize(("rounds", "seconds"), [(0, 1.0), (1, 0.0), (1, float("nan"))])
def test_nothing_cannot_be_measured(rounds, seconds):
    with pytest.raises(PipelineError, match="measure nothing"):
        compare.benchmark(rounds, seconds)
