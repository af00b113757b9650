"""Merging concurrent requests into batches, on TensorFlow's own C++ scheduler.

The `BatchFunction` op runs the SharedBatchScheduler that TensorFlow Serving itself uses; this
module reads its parameters from the same file. What goes through the scheduler are tickets, a
number for each row of a request: it decides which rows make a batch and when, and the rows
themselves are merged, run and handed back here. So requests of any shape share a queue, a batch is
copied once, and what fails is found out request by request.
"""

import functools
import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from serving import config_files, session
from serving.errors import (
    Code,
    ConfigError,
    ServingError,
    failed_precondition,
    invalid_argument,
)
from serving.metrics import Metrics

# A version's own parameters, with --enable_per_model_batching_params.
MODEL_FILE = "batching_params.pbtxt"
MAX_VALUE = 2**31 - 1
# A container's CPU limit: microseconds of all CPUs in a period, or "max" (cgroup v2).
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
# A client may filter outputs in any combination; calls beyond so many of them run alone.
MAX_QUEUES = 256
_ROW_BITS = 31  # of a ticket; the rest is the request's number, of so many:
_NUMBERS = 2**32

Run = Callable[[dict[str, np.ndarray], Sequence[str]], list[np.ndarray]]

_serial = itertools.count()
_making = threading.Lock()


@dataclass(frozen=True)
class BatchingParameters:
    """How requests are merged; the defaults are TensorFlow Serving's.

    Attributes:
        max_batch_size: rows in a batch at the most.
        batch_timeout_micros: how long a batch waits to be filled, in microseconds.
        max_enqueued_batches: batches that may wait; beyond them requests get UNAVAILABLE.
        num_batch_threads: batches run at a time; 0 for one per CPU.
        allowed_batch_sizes: sizes batches are padded to, rising to max_batch_size also where
            requests are split; none for any size.
        pad_variable_length_inputs: bring the rows of a batch to one shape, by repeating a request's
            first value; without it, rows of another shape are run apart.
        thread_pool_name: names the batch threads in the metrics.
        enable_large_batch_splitting: run requests in batches of `max_execution_batch_size`.
        max_execution_batch_size: rows run at a time, when requests are split; 0 for max_batch_size.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = 0
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    thread_pool_name: str = "batch_threads"
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("max_batch_size", 1),
            ("batch_timeout_micros", 0),
            ("max_enqueued_batches", 1),
            ("num_batch_threads", 0),
            ("max_execution_batch_size", 0),
        ):
            value = getattr(self, name)
            if not least <= value <= MAX_VALUE:
                raise ConfigError(f"{name} is {value}: it must be from {least} to {MAX_VALUE}")
        sizes = self.allowed_batch_sizes
        if any(a >= b for a, b in itertools.pairwise(sizes)):
            raise ConfigError(f"allowed_batch_sizes {sizes} must rise")
        if self.max_execution_batch_size > self.max_batch_size:
            raise ConfigError(
                f"max_execution_batch_size is {self.max_execution_batch_size}: it must not be "
                f"above max_batch_size, {self.max_batch_size}"
            )
        # servables/tensorflow/bundle_factory_util.cc, WrapSessionForBatching
        if sizes and sizes[-1] != self.max_batch_size:
            raise ConfigError(
                f"the last of allowed_batch_sizes is {sizes[-1]}: it must be max_batch_size, "
                f"{self.max_batch_size}"
            )

    @property
    def execution_limit(self) -> int:
        """Rows run at a time at the most."""
        split = self.enable_large_batch_splitting
        return (self.max_execution_batch_size if split else 0) or self.max_batch_size

    @property
    def threads(self) -> int:
        """Batches run at a time."""
        return self.num_batch_threads or cpus()

    def padded(self, rows: int) -> int:
        """The size that a batch of so many rows is run with."""
        return next((size for size in self.allowed_batch_sizes if size >= rows), rows)


# Of --enable_batching without a file (model_servers/server.cc).
DEFAULTS = BatchingParameters(thread_pool_name="model_server_batch_threads")


def read(path: Path) -> BatchingParameters:
    """Parameters from a file in TensorFlow Serving's text format.

    Raises:
        ConfigError: no such file, not in that format, or a value that cannot be.
    """
    message = config_files.read(path, "BatchingParameters")
    values: dict[str, Any] = {}
    for given, value in message.ListFields():
        repeated = given.name == "allowed_batch_sizes"
        values[given.name] = tuple(value) if repeated else getattr(value, "value", value)
    try:
        if values.get("num_batch_threads") == 0:
            raise ConfigError("num_batch_threads is 0: leave it out for one per CPU")
        return BatchingParameters(**values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


@dataclass(eq=False)
class _Task:
    """A request on its way through a batch, or through several."""

    batcher: "Batcher"
    feeds: dict[str, np.ndarray]
    fetches: tuple[str, ...]
    rows: int
    deadline: float | None
    queued: float = field(default_factory=time.monotonic)
    outputs: dict[int, list[np.ndarray]] = field(default_factory=dict)  # by first row
    error: Exception | None = None


class _Part(NamedTuple):
    """Rows of a task that are in a batch."""

    task: _Task
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    def feed(self, name: str) -> np.ndarray:
        return self.task.feeds[name][self.start : self.stop]


# Requests that are in the scheduler, by number: its op knows numbers only.
_tasks: dict[int, _Task] = {}


class Batcher:
    """A session's runs, merged; each signature has a queue of its own."""

    def __init__(self, run: Run, parameters: BatchingParameters, metrics: Metrics) -> None:
        self._run = run
        self._parameters = parameters
        self._metrics = metrics
        self._serial = next(_serial)
        self._queues: dict[tuple, Callable[[np.ndarray], object]] = {}
        self._lock = threading.Lock()

    def __call__(
        self,
        feeds: dict[str, np.ndarray],
        fetches: Sequence[str],
        deadline: float | None = None,
    ) -> list[np.ndarray]:
        """As the session's run, on feeds [N, …], merged with those of other callers; blocks.

        Raises:
            ServingError: the feeds cannot be batched, or the deadline passed.
            tf.errors.OpError: what the model refused, or that the queue is full.
        """
        rows = _rows(feeds)
        names = tuple(sorted(set(fetches)))
        queue = self._queue((tuple(sorted(feeds)), names)) if rows else None
        if queue is None:
            return self._run(feeds, fetches)
        for _ in feeds:
            self._metrics.batch_input(rows)
        number = next(_serial) % _NUMBERS
        task = _tasks[number] = _Task(self, feeds, names, rows, deadline)
        try:
            queue((number << _ROW_BITS) + np.arange(rows))
        finally:
            del _tasks[number]
        if task.error:
            raise task.error
        parts = [task.outputs[start] for start in sorted(task.outputs)]
        values = dict(zip(names, map(_whole, zip(*parts, strict=True)), strict=True))
        return [values[name] for name in fetches]

    def _queue(self, key: tuple) -> Callable[[np.ndarray], object] | None:
        """What takes tickets and returns when the batches that they are in have run."""
        with self._lock:
            queue = self._queues.get(key)
            if queue is None and len(self._queues) < MAX_QUEUES:
                name = f"{self._serial} {key}"
                queue = self._queues[key] = _scheduler().queue(self._parameters, name)
            return queue

    def process(self, parts: list[_Part]) -> None:
        """Run a batch, and give every task its rows or its error."""
        now = time.monotonic()
        for part in parts:
            self._metrics.queued(self._parameters.thread_pool_name, now - part.task.queued)
        late = [part for part in parts if (part.task.deadline or now) < now]
        for part in late:
            part.task.error = ServingError(
                Code.RESOURCE_EXHAUSTED, "Run() timeout exceeded while waiting in batching queue"
            )
        for group in self._alike([part for part in parts if part not in late]):
            self._run_or_tell(group)

    def _alike(self, parts: list[_Part]) -> list[list[_Part]]:
        """The parts in groups that can be one batch: of one shape, or one rank if padded."""
        groups: dict[tuple, list[_Part]] = {}
        for part in parts:
            shapes = [feed.shape[1:] for feed in part.task.feeds.values()]
            padded = self._parameters.pad_variable_length_inputs
            key = tuple(map(len, shapes)) if padded else tuple(shapes)
            groups.setdefault(key, []).append(part)
        return list(groups.values())

    def _run_or_tell(self, parts: list[_Part]) -> None:
        """Run a group; if it fails, run each request alone, so that only the culprit fails."""
        try:
            self._run_group(parts)
        except Exception as error:  # whatever a model raises, its callers are to know
            if len(parts) == 1:
                parts[0].task.error = error
                return
            for part in parts:
                self._run_or_tell([part])

    def _run_group(self, parts: list[_Part]) -> None:
        rows = sum(part.rows for part in parts)
        size = self._parameters.padded(rows)
        first = parts[0].task
        feeds = {name: _merge([part.feed(name) for part in parts], size) for name in first.feeds}
        with self._metrics.batch(rows, size):
            outputs = self._run(feeds, first.fetches)
        for output in outputs:
            if not output.ndim:
                raise failed_precondition("Batched output tensor has 0 dimensions")
            if len(output) != size:
                raise failed_precondition(
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th "
                    "dimension sizes of the input tensors"
                )
        at = 0
        for part in parts:
            part.task.outputs[part.start] = [x[at : at + part.rows] for x in outputs]
            at += part.rows


def _rows(feeds: dict[str, np.ndarray]) -> int:
    if any(not feed.ndim for feed in feeds.values()):
        raise invalid_argument("Batching Run() input tensors must have at least one dimension")
    if len({len(feed) for feed in feeds.values()}) > 1:
        raise invalid_argument("Batching Run() input tensors must have equal 0th-dimension size")
    return len(next(iter(feeds.values()), ()))


def _merge(values: list[np.ndarray], size: int) -> np.ndarray:
    """One array of `size` rows: the values', brought to one shape, and the first row again."""
    shape = tuple(max(lengths) for lengths in zip(*(x.shape[1:] for x in values), strict=True))
    values = [_widen(x, shape) for x in values]
    missing = size - sum(map(len, values))
    if missing:
        values.append(np.repeat(values[0][:1], missing, axis=0))
    return _whole(values)


def _widen(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Rows of a larger shape, filled up with the value's first element, as TensorFlow Serving's."""
    if value.shape[1:] == shape:
        return value
    if not value.size:
        raise invalid_argument("Got empty tensor in batch of non-empty tensors.")
    wide = np.full((len(value), *shape), value.flat[0], value.dtype)
    wide[tuple(slice(length) for length in value.shape)] = value
    return wide


def _whole(values: Sequence[np.ndarray]) -> np.ndarray:
    return values[0] if len(values) == 1 else np.concatenate(values)


def _process(tickets: np.ndarray) -> np.ndarray:
    """Called by the scheduler with a batch."""
    parts = list(_parts(tickets))
    parts[0].task.batcher.process(parts)
    return tickets


def _parts(tickets: np.ndarray) -> Iterator[_Part]:
    numbers = tickets >> _ROW_BITS
    borders = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(tickets)]
    for begin, end in itertools.pairwise(borders):
        start = int(tickets[begin]) & (2**_ROW_BITS - 1)
        yield _Part(_tasks[int(numbers[begin])], start, start + end - begin)


class _Scheduler:
    """A graph of BatchFunction ops, one for each queue, in one session, which shares their threads.

    Run through a session's callable, the op costs its caller a third of what it does eagerly.
    TensorFlow never lets go of a queue, so an op that stays with it does no harm.
    """

    def __init__(self) -> None:
        self._graph = tf.Graph()
        self._lock = threading.Lock()
        with self._graph.as_default():
            self._tickets = tf.compat.v1.placeholder(tf.int64, [None])

            @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.int64)])
            def process(tickets):
                return tf.numpy_function(_process, [tickets], [tf.int64])

            self._process = process.get_concrete_function()
        self._session = tf.compat.v1.Session(graph=self._graph)

    def queue(self, parameters: BatchingParameters, name: str) -> Callable[[np.ndarray], object]:
        """What puts tickets into a queue and returns when the batches they are in have run."""
        limit = parameters.execution_limit
        # The op has no other word for a limit on what is run.
        sizes = list(range(1, limit + 1)) if limit < parameters.max_batch_size else []
        with self._lock, self._graph.as_default():
            (ended,) = tf.raw_ops.BatchFunction(
                in_tensors=[self._tickets],
                captured_tensors=[],
                f=self._process,
                Tout=[tf.int64],
                num_batch_threads=parameters.threads,
                max_batch_size=parameters.max_batch_size,
                batch_timeout_micros=parameters.batch_timeout_micros,
                max_enqueued_batches=parameters.max_enqueued_batches,
                allowed_batch_sizes=sizes,
                enable_large_batch_splitting=parameters.enable_large_batch_splitting,
                # One scheduler, and its threads, for all with the same parameters.
                shared_name=f"batch_scheduler {parameters}",
                batching_queue=name,
            )
            return session.compiled(self._session, [self._tickets.name], [ended.name])


def _scheduler() -> _Scheduler:
    with _making:  # or two models that are asked at once for the first time get one each
        return _the_scheduler()


@functools.cache
def _the_scheduler() -> _Scheduler:
    return _Scheduler()


def for_model(path: Path, common: BatchingParameters) -> BatchingParameters | None:
    """A version's own parameters, from its file; None where it has none, and is not batched.

    The threads are those of the server's own parameters, as in TensorFlow Serving.
    """
    file = path / MODEL_FILE
    if not file.exists():
        return None
    return replace(
        read(file),
        num_batch_threads=common.num_batch_threads,
        thread_pool_name=common.thread_pool_name,
    )


def cpus() -> int:
    """CPUs that this process may use: those it may run on, and no more than its container's limit.

    TensorFlow Serving does not know of the limit, and takes a thread for each CPU of a node.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota, _, period = (CPU_MAX.read_text() if CPU_MAX.exists() else "max").partition(" ")
    limit = math.inf if quota.strip() == "max" else int(quota) / int(period)
    return max(1, math.ceil(min(usable or 1, limit)))
