"""What callers got in some time, by the metrics of the servers that answered them."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from tfs_client._errors import TFSError
from tfs_client._tensors import Array
from tfs_client.bench import server_side

_PREFIX = ":tensorflow:serving:"
# Probes count as OK, or as NOT_FOUND while no version is AVAILABLE, and their latency has no API.
_NO_FAILURES = ("OK", "NOT_FOUND")
_ALL = "inf"
_PARTS = 20  # of a window
_PROBIT = np.vectorize(NormalDist().inv_cdf, otypes=[float])

Calls = Counter[tuple[str, ...]]
"""Calls to a model: failed ones by (status,), answered ones by (API, entry point, limit), which are
those that took no longer than so many microseconds.
"""
Parts = Sequence[tuple[Calls, Calls]]
"""Of a window: the calls that two meters saw in the same time."""


def calls(text: str, model: str) -> Calls:
    """All since the server started, of metrics in Prometheus' text format."""
    found: Calls = Counter()
    for family in text_string_to_metric_families(text):
        for name, labels, value in (sample[:3] for sample in family.samples):
            if labels.get("model_name") != model:
                continue
            # The parser ends every counter's name in _total.
            if name == _PREFIX + "request_count_total" and labels["status"] not in _NO_FAILURES:
                found[(labels["status"],)] += int(value)
            elif name == _PREFIX + "request_latency_bucket" and labels.get("API"):
                # TensorFlow Serving prints limits in six digits, the embedded server in full.
                limit = f"{float(labels['le']):.6g}"
                found[labels["API"], labels.get("entrypoint", ""), limit] += int(value)
    return found


class Meter:
    """Reads what servers count, and says what came since it was last read.

    Args:
        urls: of the servers' metrics; asked for anew each time, since servers come and go.
        model: whose calls.

    Raises:
        TFSError: the metrics of one cannot be read.
    """

    def __init__(self, urls: Callable[[], Sequence[str]], model: str) -> None:
        self._urls, self._model = urls, model
        self._last: dict[str, Calls] = {}
        for url in urls():
            self._since(url)

    def read(self) -> Calls:
        """Calls since the last time. Those of a server that ended in between are lost.

        Raises:
            TFSError: the metrics of none can be read.
        """
        found: Calls = Counter()
        urls = self._urls()
        failed = []
        for url in urls:
            try:
                found.update(self._since(url))
            except TFSError as error:
                failed.append(error)
        if len(failed) == len(urls):
            raise failed[0]
        return found

    def _since(self, url: str) -> Calls:
        now = server_side.read(url, lambda text: calls(text, self._model))
        before = self._last.get(url, Counter())
        self._last[url] = now
        if any(now[key] < count for key, count in before.items()):  # it was started again
            return now
        return Counter({key: count - before[key] for key, count in now.items()})


def beside(address: str, url: str | None = None) -> Callable[[], list[str]]:
    """Where the metrics of servers are.

    Args:
        address: of their gRPC, `host:port` or several with commas between; the metrics are on the
            next port, 8501 for 8500. A host may stand for several servers, as on Kubernetes the
            name of a headless Service does.
        url: of the metrics, in place of that.

    Raises:
        TFSError: the address is another of gRPC's target names.
    """
    if url:
        return lambda: [url]
    pairs = []
    for one in address.split(","):
        host, _, port = one.removeprefix("dns:///").rpartition(":")
        if not host or not port.isdigit() or (":" in host.strip("[]") and "[" not in host):
            raise TFSError(f"{one}: where the metrics of this are cannot be told: name their URL")
        pairs.append((host.strip("[]"), int(port) + 1))

    def urls() -> list[str]:
        return [url for host, port in pairs for url in _each(host, port)]

    return urls


def _each(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TFSError(f"{host}: has no address: {error.strerror}") from error
    family = min(each[0] for each in found)  # a server that has two of IPv4 and IPv6 is one
    hosts = sorted({str(each[4][0]) for each in found if each[0] == family})
    return [f"http://{f'[{ip}]' if ':' in ip else ip}:{port}{server_side.PATH}" for ip in hosts]


def watch(meters: tuple[Meter, Meter], seconds: float) -> Parts:
    """Read both at even times of a window."""
    begin, parts = time.monotonic(), []
    for part in range(_PARTS + 1):
        time.sleep(max(0.0, begin + part * seconds / _PARTS - time.monotonic()))
        parts.append((meters[0].read(), meters[1].read()))
    return parts[1:]  # the first is of what came before


def failures(parts: Parts) -> list[tuple[Counter[str], int]]:
    """Of each meter: failed calls by status, and all calls."""
    found = []
    for total in _totals(parts):
        failed = Counter({key[0]: count for key, count in total.items() if len(key) == 1})
        answered = sum(count for key, count in total.items() if key[-1] == _ALL)
        found.append((failed, failed.total() + answered))
    return found


def histograms(parts: Parts) -> tuple[Array, list[Array]]:
    """Latencies, of the APIs and entry points by which both meters' servers answered.

    Returns:
        Limits in microseconds, the last one infinite; and of each meter [part, limit], how many
        calls took no longer.
    """
    totals = _totals(parts)
    keys = [
        key
        for key in totals[0].keys() & totals[1].keys()
        if len(key) == 3 and all(total[(*key[:2], _ALL)] for total in totals)
    ]
    limits = sorted({key[2] for key in keys} | {_ALL}, key=float)
    counts = [
        [[sum(each[key] for key in keys if key[2] == limit) for limit in limits] for each in meter]
        for meter in zip(*parts, strict=True)
    ]
    return np.array(limits, float), [np.array(each, float) for each in counts]


def _totals(parts: Parts) -> list[Calls]:
    totals: list[Calls] = [Counter(), Counter()]
    for part in parts:
        for total, calls in zip(totals, part, strict=True):
            total.update(calls)
    return totals


def quantile(limits: Array, below: Array, q: float) -> Array:
    """Of each row of a histogram, the value that `q` % do not exceed; NaN for none.

    Limits are a factor 1.8 apart. Between two, calls are taken to lie as in a log-normal
    distribution; evenly, as Prometheus' histogram_quantile has them, a tail that is slower would
    often seem a third slower than it is.
    """
    count = np.maximum(below[:, -1], 1.0)
    at = np.clip(np.argmax(below >= below[:, -1:] * q / 100, axis=1), 1, len(limits) - 2)
    rows, least = np.arange(len(below)), 0.5 / count
    low, high = (
        _PROBIT(np.clip(below[rows, each] / count, least, 1 - least)) for each in (at - 1, at)
    )
    way = np.clip((_PROBIT(q / 100) - low) / np.maximum(high - low, 1e-9), 0.0, 1.0)
    found: Array = limits[at - 1] * (limits[at] / limits[at - 1]) ** way
    return np.where(below[:, -1] > 0, found, np.nan)
