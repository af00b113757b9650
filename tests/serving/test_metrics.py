import re

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.batching import Batcher, BatchingParameters
from serving.errors import ServingError, not_found
from serving.metrics import Metrics

SERVING = ":tensorflow:serving:"
BATCHING = SERVING + "batching_session:"


def used() -> Metrics:
    """Metrics of a server that has done a little of everything."""
    metrics = Metrics()
    with metrics.request("affine", "Predict", "GRPC") as call:
        call.version = 2
        with metrics.runtime("affine", "Predict"):
            pass
    with pytest.raises(ServingError), metrics.request("nope", "predict", "REST"):
        raise not_found("nope")
    metrics.examples("affine", 3)
    metrics.warm_up("/models/affine/2", "OK", 0.5, 7)
    metrics.queued("batch_threads", 0.001)
    metrics.batch_input(3)
    with metrics.batch(3, 4):
        pass
    return metrics


def samples(metrics: Metrics) -> dict[str, float]:
    """Values by name and labels, as the page writes them."""
    lines = metrics.page().decode().splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
    }


@pytest.mark.parametrize(
    ("name", "kind", "labels"),
    [
        (SERVING + "request_count", "counter", {"model_name", "status"}),
        (SERVING + "request_latency", "histogram", {"model_name", "API", "entrypoint"}),
        (SERVING + "runtime_latency", "histogram", {"model_name", "API", "runtime"}),
        (SERVING + "request_example_count_total", "counter", {"model"}),
        (SERVING + "request_example_counts", "histogram", {"model"}),
        (SERVING + "model_warmup_latency", "histogram", {"model_path", "status"}),
        (SERVING + "model_warmup_records_read", "counter", {"model_path", "status"}),
        (BATCHING + "queuing_latency", "histogram", {"thread_pool_name"}),
        (BATCHING + "wrapped_run_count", "counter", set()),
        (BATCHING + "padding_size", "histogram", {"execution_batch_size"}),
        (BATCHING + "input_batch_size", "histogram", set()),
        (BATCHING + "processed_batch_size", "histogram", set()),
        ("embedded_server_requests_total", "counter", {"model_name", "version", "API", "status"}),
        (
            "embedded_server_request_latency_microseconds",
            "histogram",
            {"model_name", "version", "API"},
        ),
    ],
)
def test_the_page_has_tensorflow_servings_names_types_and_labels(name, kind, labels):
    page = used().page().decode()
    assert f"# TYPE {name} {kind}\n" in page
    suffix = "_count" if kind == "histogram" else ""
    given = re.findall(rf"^{re.escape(name + suffix)}(?:\{{(.*)\}})? \S+$", page, re.MULTILINE)
    assert given
    for text in given:
        assert set(re.findall(r'(\w+)="', text)) == labels


def test_a_request_is_counted_by_how_it_ends_and_timed_if_well():
    found = samples(used())
    assert found[SERVING + 'request_count{model_name="affine",status="OK"}'] == 1
    assert found[SERVING + 'request_count{model_name="nope",status="NOT_FOUND"}'] == 1
    timed = [name for name in found if name.startswith(SERVING + "request_latency_count")]
    assert len(timed) == 1
    assert 'model_name="affine"' in timed[0]


def test_a_request_is_counted_by_the_version_that_answers_it():
    found = samples(used())
    counted = [name for name in found if name.startswith("embedded_server_requests_total")]
    assert len(counted) == 1  # the other found no version
    assert 'version="2"' in counted[0]


def test_any_error_is_counted_by_its_code():
    metrics = Metrics()
    with pytest.raises(KeyError), metrics.request("affine", "Predict", "GRPC"):
        raise KeyError("x")
    assert samples(metrics)[SERVING + 'request_count{model_name="affine",status="INTERNAL"}'] == 1


def test_times_are_in_microseconds():
    found = samples(used())
    labels = '{model_path="/models/affine/2",status="OK"}'
    assert found[SERVING + f"model_warmup_latency_sum{labels}"] == pytest.approx(500_000)
    assert found[BATCHING + 'queuing_latency_sum{thread_pool_name="batch_threads"}'] == (
        pytest.approx(1000)
    )


def test_a_batch_is_counted_with_its_padding():
    metrics = Metrics()
    parameters = BatchingParameters(8, 1000, allowed_batch_sizes=(4, 8), thread_pool_name="pool")
    batcher = Batcher(lambda feeds, _: [feeds["x:0"]], parameters, metrics)
    batcher({"x:0": np.zeros((3, 2), np.float32)}, ["y:0"])
    found = samples(metrics)
    assert found[BATCHING + "wrapped_run_count"] == 1
    assert found[BATCHING + "input_batch_size_sum"] == 3
    assert found[BATCHING + "processed_batch_size_sum"] == 4
    assert found[BATCHING + 'padding_size_sum{execution_batch_size="4"}'] == 1
    assert found[BATCHING + 'queuing_latency_count{thread_pool_name="pool"}'] == 1


def test_a_batch_that_fails_is_counted_and_so_is_each_input():
    def fail(*_) -> list[np.ndarray]:
        raise ValueError("broken")

    metrics = Metrics()
    batcher = Batcher(fail, BatchingParameters(8, 1000), metrics)
    with pytest.raises(ValueError, match="broken"):
        batcher({"x:0": np.zeros((3, 2)), "y:0": np.zeros(3)}, ["z:0"])
    found = samples(metrics)
    assert found[BATCHING + "wrapped_run_count"] == 1
    assert found[BATCHING + "processed_batch_size_count"] == 1
    assert found[BATCHING + "input_batch_size_count"] == 2
    assert found[BATCHING + "input_batch_size_sum"] == 6


def test_limits_of_buckets_are_written_as_tensorflow_serving_writes_them():
    bucket = SERVING + "runtime_latency_bucket"
    limits = [line for line in used().page().decode().splitlines() if line.startswith(bucket)]
    found = [line.partition('le="')[2].partition('"')[0] for line in limits]
    assert found[:6] == ["10", "18", "32.4", "58.32", "104.976", "188.957"]
    assert found[-2:] == ["1.47476e+09", "+Inf"]


def test_prometheus_reads_the_page():
    names = {family.name for family in text_string_to_metric_families(used().page().decode())}
    assert {SERVING + "request_latency", "embedded_server_requests"} <= names


def test_two_servers_count_apart():
    used()
    assert not any(name.startswith(SERVING + "request_count{") for name in samples(Metrics()))
