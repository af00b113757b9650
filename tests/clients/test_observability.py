"""Spans by OpenTelemetry's own instrumentation of gRPC, metrics by gRPC's own plugin."""

import subprocess
import sys

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tfs_client import Client, UnavailableError

PREDICT = "/tensorflow.serving.PredictionService/Predict"


@pytest.fixture(scope="module")
def provider():
    provider = TracerProvider()
    trace.set_tracer_provider(provider)  # the instrumentation of grpc takes no other
    return provider


@pytest.fixture
def exporter(provider):
    spans = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    instrumentors = GrpcInstrumentorClient(), GrpcAioInstrumentorClient()
    for instrumentor in instrumentors:
        instrumentor.instrument()
    yield spans
    for instrumentor in instrumentors:
        instrumentor.uninstrument()


def test_each_attempt_is_a_span(exporter, connect, server):
    client = connect(server.address)
    server.fail()
    client.classify(b"x")
    spans = exporter.get_finished_spans()
    assert [span.attributes["rpc.method"] for span in spans] == ["Predict", "Predict"]
    assert [span.status.status_code.name for span in spans] == ["ERROR", "UNSET"]
    for sent, span in zip(server.requests, spans, strict=True):
        assert f"{span.context.trace_id:032x}" in sent.metadata["traceparent"]
    server.fail(times=9)
    with pytest.raises(UnavailableError):
        connect(server.address, hedge=0.05).classify(b"x")


def test_grpcs_interceptors_are_taken(server):
    seen = []

    class Interceptor(grpc.UnaryUnaryClientInterceptor):
        def intercept_unary_unary(self, continuation, details, request):
            seen.append(details.method)
            return continuation(details, request)

    for hedge in (None, 1.0):
        with Client(server.address, interceptors=[Interceptor()], hedge=hedge) as client:
            client.classify(b"x")
    assert seen == [PREDICT] * 2


def test_grpcs_own_plugin_makes_metrics(server):
    # In a process of its own: it is registered for good.
    code = """if True:
        import sys
        import grpc_observability
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from tfs_client import Client
        reader = InMemoryMetricReader()
        plugin = grpc_observability.OpenTelemetryPlugin(
            meter_provider=MeterProvider(metric_readers=[reader])
        )
        plugin.register_global()
        with Client(sys.argv[1]) as client:
            client.classify(b"x")
        plugin.deregister_global()
        scopes = reader.get_metrics_data().resource_metrics[0].scope_metrics
        print(*sorted(metric.name for scope in scopes for metric in scope.metrics))
    """
    done = subprocess.run(
        [sys.executable, "-c", code, server.address],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "grpc.client.attempt.duration" in done.stdout.split(), done.stderr
