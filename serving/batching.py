"""Merging concurrent requests into batches, on TensorFlow's own C++ scheduler.

The `BatchFunction` op runs the SharedBatchScheduler that TensorFlow Serving itself uses; this
module reads its parameters from the same file and makes a queue per servable, signature and shape.
"""

import functools
import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import tensorflow as tf
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)

from serving.errors import ConfigError

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

# Each image size seen gets a queue of its own, since a batch has one shape; beyond this many,
# requests of further sizes run unbatched.
MAX_QUEUES = 64

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
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        sizes = self.allowed_batch_sizes
        if any(a >= b for a, b in itertools.pairwise(sizes)):
            raise ConfigError(f"allowed_batch_sizes {sizes} must rise")
        if sizes and sizes[-1] != self.max_batch_size and not self.enable_large_batch_splitting:
            raise ConfigError(
                f"the last of allowed_batch_sizes is {sizes[-1]}: it must be "
                f"max_batch_size, {self.max_batch_size}"
            )


def read(path: Path) -> BatchingParameters:
    """Parameters from a file in TensorFlow Serving's text format.

    Raises:
        ConfigError: no such file, not in that format, or a value that cannot be.
    """
    message = _message_class()()
    try:
        text_format.Parse(path.read_text(), message)
    except (OSError, text_format.ParseError) as error:
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
    """One signature's function, run on merged batches."""

    def __init__(self, function: Function, parameters: BatchingParameters) -> None:
        self._function = function
        self._parameters = parameters
        # One scheduler for all queues of the signature; names are process-wide.
        self._scheduler = f"batch_scheduler_{next(_serial)}"
        self._queues: dict[str, tf.types.experimental.PolymorphicFunction] = {}

    def __call__(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Run the function on tensors [N, …] merged with those of other callers; blocks."""
        return self._queue(tensors)(*tensors)

    def _queue(self, tensors: list[tf.Tensor]):
        key = ",".join(str(list(tensor.shape)[1:]) for tensor in tensors)
        queue = self._queues.get(key)
        if queue is None and len(self._queues) >= MAX_QUEUES:
            return lambda *args: run(self._function, list(args))
        return queue or self._queues.setdefault(key, self._new_queue(key, tensors))

    def _new_queue(self, key: str, tensors: list[tf.Tensor]):
        parameters = self._parameters

        @tf.function(
            autograph=False, input_signature=[tf.TensorSpec(None, t.dtype) for t in tensors]
        )
        def batched(*args):
            return tf.raw_ops.BatchFunction(
                in_tensors=list(args),
                captured_tensors=self._function.captured_inputs,
                f=self._function,
                Tout=[output.dtype for output in self._function.outputs],
                num_batch_threads=parameters.num_batch_threads or _cpus(),
                max_batch_size=parameters.max_batch_size,
                batch_timeout_micros=parameters.batch_timeout_micros,
                max_enqueued_batches=parameters.max_enqueued_batches,
                allowed_batch_sizes=list(parameters.allowed_batch_sizes),
                enable_large_batch_splitting=parameters.enable_large_batch_splitting,
                shared_name=self._scheduler,
                batching_queue=key,
            )

        return batched


def run(function: Function, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """Run a signature's function on a request's tensors alone.

    By the op rather than by a Python call, which would hold requests to the signature's shapes:
    TensorFlow Serving does not.
    """
    return tf.raw_ops.StatefulPartitionedCall(
        args=[*tensors, *function.captured_inputs],
        Tout=[output.dtype for output in function.outputs],
        f=function,
    )


def _cpus() -> int:
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
