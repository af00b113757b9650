"""What is counted and timed, under TensorFlow Serving's names, in microseconds.

TensorFlow Serving's metrics have no version label; the two named `embedded_server_…` have.
"""

import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram

from serving.errors import translate

_PREFIX = ":tensorflow:serving:"
_BATCHING = _PREFIX + "batching_session:"
_Metric = TypeVar("_Metric", Counter, Histogram)


def _exponential(scale: float, growth: float, count: int) -> list[float]:
    return [scale * growth**power for power in range(count)]


# Bucket limits as in TensorFlow Serving (servables/tensorflow/util.cc, batching_session.cc).
_LATENCY = _exponential(10, 1.8, 33)
_QUEUING = _exponential(100, 1.2, 52)
_SIZES = _exponential(1, 2, 15)


def _by_labels(metric: _Metric, labels: Sequence[str]) -> Callable[..., _Metric]:
    """What gives the metric of some labels; the library takes 3 µs to find it, which adds up."""
    return functools.cache(metric.labels) if labels else lambda: metric


@dataclass
class Call:
    """A request being counted; whoever finds the version that answers it says so here."""

    version: int | None = None


class Metrics:
    """One server's metrics."""

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()
        self._registry = CollectorRegistry()
        counter, histogram = self._counter, self._histogram
        self._requests = counter(_PREFIX + "request_count", "model_name", "status")
        self._latency = histogram(
            _PREFIX + "request_latency", _LATENCY, "model_name", "API", "entrypoint"
        )
        self._runtime = histogram(
            _PREFIX + "runtime_latency", _LATENCY, "model_name", "API", "runtime"
        )
        self._examples = counter(_PREFIX + "request_example_count", "model")
        self._example_counts = histogram(_PREFIX + "request_example_counts", _SIZES, "model")
        self._warm_up = histogram(
            _PREFIX + "model_warmup_latency", _LATENCY, "model_path", "status"
        )
        self._warm_up_records = counter(
            _PREFIX + "model_warmup_records_read", "model_path", "status"
        )
        self._queuing = histogram(_BATCHING + "queuing_latency", _QUEUING, "thread_pool_name")
        self._runs = counter(_BATCHING + "wrapped_run_count")
        self._padding = histogram(_BATCHING + "padding_size", _SIZES, "execution_batch_size")
        self._input_size = histogram(_BATCHING + "input_batch_size", _SIZES)
        self._processed_size = histogram(_BATCHING + "processed_batch_size", _SIZES)
        self._by_version = counter(
            "embedded_server_requests", "model_name", "version", "API", "status"
        )
        self._version_latency = histogram(
            "embedded_server_request_latency_microseconds",
            _LATENCY,
            "model_name",
            "version",
            "API",
        )

    def _counter(self, name: str, *labels: str) -> Callable[..., Counter]:
        return _by_labels(Counter(name, name, labels, registry=self._registry), labels)

    def _histogram(self, name: str, limits: list[float], *labels: str) -> Callable[..., Histogram]:
        made = Histogram(name, name, labels, buckets=limits, registry=self._registry)
        return _by_labels(made, labels)

    @contextlib.contextmanager
    def request(self, model: str, api: str, entrypoint: str) -> Iterator[Call]:
        """Count a request by how it ends, and time it if it ends well.

        Args:
            model: the name asked for.
            api: as TensorFlow Serving labels it: `Predict` over gRPC, `predict` over REST, …
            entrypoint: `GRPC` or `REST`.
        """
        call, started, status = Call(), time.perf_counter(), "OK"
        try:
            yield call
        except Exception as error:
            status = translate(error).code.name
            raise
        finally:
            micros = (time.perf_counter() - started) * 1e6
            self._requests(model, status).inc()
            if status == "OK":
                self._latency(model, api, entrypoint).observe(micros)
            if call.version is not None:
                self._by_version(model, call.version, api, status).inc()
                if status == "OK":
                    self._version_latency(model, call.version, api).observe(micros)

    @contextlib.contextmanager
    def runtime(self, model: str, api: str) -> Iterator[None]:
        """Time what a model's session took, with waiting for a batch, if it ends well."""
        started = time.perf_counter()
        yield
        self._runtime(model, api, "TF1").observe((time.perf_counter() - started) * 1e6)

    def examples(self, model: str, count: int) -> None:
        """Note a request's number of examples."""
        self._examples(model).inc(count)
        self._example_counts(model).observe(count)

    def warm_up(self, path: str, status: str, seconds: float, records: int) -> None:
        """Note a warm-up."""
        self._warm_up(path, status).observe(seconds * 1e6)
        self._warm_up_records(path, status).inc(records)

    def queued(self, pool: str, seconds: float) -> None:
        """Note how long a request waited for its batch to start."""
        self._queuing(pool).observe(seconds * 1e6)

    def batch_input(self, rows: int) -> None:
        """Note the rows of one input of a request that is to be merged."""
        self._input_size().observe(rows)

    @contextlib.contextmanager
    def batch(self, rows: int, size: int) -> Iterator[None]:
        """Note the run of a batch: the rows that were asked for, and those run, with padding."""
        self._processed_size().observe(size)
        self._padding(size).observe(size - rows)
        try:
            yield
        finally:
            self._runs().inc()

    def page(self) -> bytes:
        """Everything, in Prometheus' text format."""
        text = prometheus_client.generate_latest(self._registry).decode()
        # The library ends every counter's name in _total; TensorFlow Serving only this one.
        plain = rf"(?<={_PREFIX})(?!request_example_count_total)(\S*)_total\b"
        text = re.sub(plain, r"\1", text)
        # As it writes a bucket's limit, by which queries ask for it: 188.957, not 188.9568.
        return re.sub(r'(?<=le=")\d[\d.e+]*', lambda limit: f"{float(limit[0]):g}", text).encode()
