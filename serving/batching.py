"""Merging concurrent requests into batches, on TensorFlow's own C++ scheduler.

The `BatchFunction` op runs the SharedBatchScheduler that TensorFlow Serving itself uses; this
module reads its parameters from the same file and makes a queue per servable, signature and shape.
"""

import functools
import itertools
import os
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)

from serving.errors import ConfigError, ServingError, code_of, translate

# BatchingParameters of tensorflow_serving/servables/tensorflow/session_bundle_config.proto, which
# the tensorflow-serving-api package lacks: field -> (number, type).
_PROTO_FIELDS = {
    "max_batch_size": (1, "Int64Value"),
    "batch_timeout_micros": (2, "Int64Value"),
    "max_enqueued_batches": (3, "Int64Value"),
    "num_batch_threads": (4, "Int64Value"),
    "allowed_batch_sizes": (5, "int64"),
    "pad_variable_length_inputs": (6, "bool"),
    "thread_pool_name": (7, "StringValue"),
    "enable_large_batch_splitting": (9, "BoolValue"),
    "max_execution_batch_size": (10, "Int64Value"),
}
_NOT_SUPPORTED = ("pad_variable_length_inputs", "thread_pool_name", "max_execution_batch_size")

# Each image size seen gets a queue of its own, since a batch has one shape; beyond this many, the
# oldest goes.
MAX_QUEUES = 64
MAX_VALUE = 2**31 - 1

Function: TypeAlias = tf.types.experimental.ConcreteFunction

_serial = itertools.count()


@dataclass(frozen=True)
class BatchingParameters:
    """How requests are merged; the defaults are TensorFlow Serving's.

    Attributes:
        max_batch_size: rows in a batch at the most.
        batch_timeout_micros: how long a batch waits to be filled, in microseconds.
        max_enqueued_batches: batches that may wait; beyond them requests get UNAVAILABLE.
        num_batch_threads: batches run at a time; 0 for one per CPU.
        allowed_batch_sizes: sizes batches are padded to, rising; none for any size.
        enable_large_batch_splitting: take requests of more rows than a batch and split them.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = 0
    allowed_batch_sizes: tuple[int, ...] = ()
    enable_large_batch_splitting: bool = False

    def __post_init__(self) -> None:
        for name, least in (
            ("max_batch_size", 1),
            ("batch_timeout_micros", 0),
            ("max_enqueued_batches", 1),
            ("num_batch_threads", 0),
        ):
            value = getattr(self, name)
            if not least <= value <= MAX_VALUE:
                raise ConfigError(f"{name} is {value}: it must be from {least} to {MAX_VALUE}")
        sizes = self.allowed_batch_sizes
        if any(a >= b for a, b in itertools.pairwise(sizes)):
            raise ConfigError(f"allowed_batch_sizes {sizes} must rise")
        if sizes and sizes[-1] != self.max_batch_size and not self.enable_large_batch_splitting:
            raise ConfigError(
                f"the last of allowed_batch_sizes is {sizes[-1]}: it must be "
                f"max_batch_size, {self.max_batch_size}"
            )

    @property
    def threads(self) -> int:
        """Batches run at a time."""
        return self.num_batch_threads or cpus()


def inter_op_threads(parameters: BatchingParameters | None, wanted: int = 0) -> int:
    """Size of TensorFlow's inter-op pool: `wanted`, or one per CPU, and one per batch thread."""
    return (wanted or cpus()) + (parameters.threads if parameters else 0)


def read(path: Path) -> BatchingParameters:
    """Parameters from a file in TensorFlow Serving's text format.

    Raises:
        ConfigError: no such file, not in that format, or a value that cannot be.
    """
    message = _message_class()()
    try:
        text_format.Parse(path.read_text(), message)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ConfigError(f"batching parameters file {path}: {error}") from error
    values: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.name in _NOT_SUPPORTED:
            raise ConfigError(f"batching parameters file {path}: {field.name} is not supported")
        if field.name == "allowed_batch_sizes":
            values[field.name] = tuple(value)
        else:
            values[field.name] = value.value
    try:
        return BatchingParameters(**values)
    except ConfigError as error:
        raise ConfigError(f"batching parameters file {path}: {error}") from error


class Batcher:
    """One signature's function, run on merged batches.

    The scheduler's op calls back into Python once a batch, and the function runs from there:
    within the op it would be instantiated anew for each queue, with its weights, and never freed.
    Each batch under way holds a thread of TensorFlow's inter-op pool meanwhile, and the function
    needs another: see `inter_op_threads`.
    """

    def __init__(self, function: Function, parameters: BatchingParameters) -> None:
        if (tf.config.threading.get_inter_op_parallelism_threads() or cpus()) <= parameters.threads:
            raise ConfigError(
                f"{parameters.threads} batch threads would wait for TensorFlow's inter-op threads "
                f"for ever: set at least {inter_op_threads(parameters)} of those"
            )
        self._function = function
        self._parameters = parameters
        self._serial = next(_serial)
        self._lock = threading.Lock()
        self._queues: dict[str, Function] = {}

    def __call__(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Run the function on tensors [N, …] merged with those of other callers; blocks.

        Raises:
            ServingError: what the function raised on the batch that these tensors were in.
            tf.errors.OpError: the batch could not be queued.
        """
        *outputs, failures = self._queue(tensors)(*tensors)
        if failures.shape[0] and (failure := failures[0].numpy()):
            number, _, message = failure.decode(errors="replace").partition(":")
            raise ServingError(code_of(int(number)), message)
        return outputs

    def _queue(self, tensors: list[tf.Tensor]):
        key = f"{self._serial} {[tensor.shape.as_list()[1:] for tensor in tensors]}"
        with self._lock:
            if key not in self._queues:
                if len(self._queues) >= MAX_QUEUES:
                    self._queues.pop(next(iter(self._queues)))
                self._queues[key] = self._new_queue(key, [tensor.dtype for tensor in tensors])
            return self._queues[key]

    def _new_queue(self, key: str, dtypes: list[tf.DType]):
        parameters = self._parameters
        output_dtypes = [*(output.dtype for output in self._function.outputs), tf.string]
        specs = [tf.TensorSpec(None, dtype) for dtype in dtypes]
        # TensorFlow never lets go of a numpy_function: it must not hold the model.
        method = weakref.WeakMethod(self._compute)

        def run_batch(*arrays: np.ndarray) -> list[np.ndarray]:
            compute_now = method()
            assert compute_now, "a caller holds the model"
            return compute_now(*arrays)

        @tf.function(autograph=False, input_signature=specs)
        def compute(*batch):
            return tf.numpy_function(run_batch, batch, output_dtypes)

        @tf.function(autograph=False, input_signature=specs)
        def batched(*args):
            return tf.raw_ops.BatchFunction(
                in_tensors=list(args),
                captured_tensors=[],
                f=compute.get_concrete_function(),
                Tout=output_dtypes,
                num_batch_threads=parameters.threads,
                max_batch_size=parameters.max_batch_size,
                batch_timeout_micros=parameters.batch_timeout_micros,
                max_enqueued_batches=parameters.max_enqueued_batches,
                allowed_batch_sizes=list(parameters.allowed_batch_sizes),
                enable_large_batch_splitting=parameters.enable_large_batch_splitting,
                # One scheduler, and its threads, for all: the names live as long as the process.
                shared_name=f"batch_scheduler {parameters}",
                batching_queue=key,
            )

        return batched.get_concrete_function()

    def _compute(self, *batch: np.ndarray) -> list[np.ndarray]:
        """The function's outputs, and for each row what went wrong: `code:message`, or nothing.

        An error goes the way of an answer because the op would keep its text only.
        """
        rows = len(batch[0])
        try:
            outputs = run(self._function, [tf.constant(array) for array in batch])
        except Exception as error:  # the one way out for whatever a model raises
            failure = translate(error)
            blanks = [_blank(output.dtype, rows) for output in self._function.outputs]
            text = f"{failure.code.value.number}:{failure.message}".encode()
            return [*blanks, np.array([text] * rows, object)]
        return [*(output.numpy() for output in outputs), np.array([b""] * rows, object)]


def _blank(dtype: tf.DType, rows: int) -> np.ndarray:
    return (
        np.full(rows, b"", object) if dtype == tf.string else np.zeros(rows, dtype.as_numpy_dtype)
    )


def run(function: Function, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """Run a signature's function on tensors as they are.

    Not by a plain call, which would hold requests to the signature's shapes: TensorFlow Serving
    does not. Nor by the PartitionedCall op, whose kernel would outlive the function.
    """
    return function.inference_fn.call_flat(*tensors, *function.captured_inputs)


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _message_class():
    """The BatchingParameters message, for protobuf's own text parser."""
    file = descriptor_pb2.FileDescriptorProto(
        name="batching_parameters.proto",
        package="googlenet_serving",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    message = file.message_type.add(name="BatchingParameters")
    for name, (number, kind) in _PROTO_FIELDS.items():
        field = message.field.add(name=name, number=number)
        repeated = name == "allowed_batch_sizes"
        field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
        if kind.endswith("Value"):
            field.type, field.type_name = field.TYPE_MESSAGE, f".google.protobuf.{kind}"
        else:
            field.type = field.TYPE_BOOL if kind == "bool" else field.TYPE_INT64
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("googlenet_serving.BatchingParameters")
    )
