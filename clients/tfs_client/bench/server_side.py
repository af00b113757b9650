"""What the server's own metrics say of the time of a measurement."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from prometheus_client.parser import text_string_to_metric_families

from tfs_client._errors import TFSError

_PREFIX = ":tensorflow:serving:"
_BATCHING = _PREFIX + "batching_session:"
# What it is called here, the histogram whose mean it is, and what that is divided by.
_MEANS = (
    ("server_ms", _PREFIX + "request_latency", 1e3),
    ("runtime_ms", _PREFIX + "runtime_latency", 1e3),
    ("queue_ms", _BATCHING + "queuing_latency", 1e3),
    ("batch_images", _BATCHING + "processed_batch_size", 1),
    ("padding_images", _BATCHING + "padding_size", 1),
)
PATH = "/monitoring/prometheus/metrics"  # of serving/config/monitoring.config
TIMEOUT_SECONDS = 10.0

Key = TypeVar("Key")


def scrape(url: str) -> Counter[str]:
    """Sums and counts of all the server's histograms, over their labels.

    Args:
        url: of TensorFlow Serving's metrics, http://host:8501/monitoring/prometheus/metrics.

    Raises:
        TFSError: nothing answers there, or what it answers are no metrics.
    """
    return read(url, totals)


def read(url: str, meaning: Callable[[str], Counter[Key]]) -> Counter[Key]:
    """What a page of metrics means.

    Raises:
        TFSError: as `scrape`.
    """
    if not url.startswith(("http://", "https://")):
        raise TFSError(f"{url}: is no URL of metrics, such as http://host:8501{PATH}")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            return meaning(answer.read().decode())
    except urllib.error.HTTPError as error:
        error.close()  # it is the answer too
        hint = ": start the server with --monitoring_config_file" if error.code == 404 else ""
        raise TFSError(f"{url}: no metrics can be read: {error}{hint}") from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise TFSError(f"{url}: no metrics can be read: {error}") from error
    except ValueError as error:
        raise TFSError(f"{url}: these are no metrics: {error}") from error


def totals(text: str) -> Counter[str]:
    """The same, of metrics in Prometheus' text format."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.endswith(("_sum", "_count")):
                found[sample.name] += sample.value  # type: ignore[assignment]
    return found


def between(before: Counter[str], after: Counter[str]) -> dict[str, float]:
    """Means over the requests of a time: milliseconds in the server, at work with its queue, and in
    the queue; images in a batch, padding included, and the padding.
    """
    means = {}
    for name, metric, divisor in _MEANS:
        count = after[f"{metric}_count"] - before[f"{metric}_count"]
        if count:
            total = after[f"{metric}_sum"] - before[f"{metric}_sum"]
            means[name] = total / count / divisor
    return means
