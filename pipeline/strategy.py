"""Where training runs: on one device, all of a machine's, several machines, or a TPU.

    --strategy one|mirrored|multiworker|tpu

`multiworker` reads the cluster from the environment variable TF_CONFIG, the same on every worker
but for its index:

    {"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}

Worker 0 is the chief: it alone prints and writes. Every wait for another worker has a limit: one
that does not come is named, one that dies is noticed within seconds by TensorFlow's heartbeat, one
that hangs by `WaitLimit`.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import tensorflow as tf
from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
from tensorflow.python.eager import context

from pipeline.errors import PipelineError, reason

WAIT_SECONDS = 300.0  # longest wait for another worker, at the start and in any step
# What collective operations raise when another worker is gone.
WORKER_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
HEARTBEAT_SECONDS = 20  # without a sign of life, after which a worker is given up


def _one(_: float) -> tf.distribute.Strategy:
    gpu = bool(tf.config.list_physical_devices("GPU"))
    return tf.distribute.OneDeviceStrategy("/gpu:0" if gpu else "/cpu:0")


def _multiworker(wait_seconds: float) -> tf.distribute.Strategy:
    workers, index = _cluster()
    _meet(workers, index, wait_seconds)
    # TensorFlow offers no public way to these limits.
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        heartbeat_timeout_in_ms=1000 * HEARTBEAT_SECONDS,
        shutdown_barrier_timeout_in_ms=1000 * HEARTBEAT_SECONDS,
        coordinated_jobs=[CoordinatedJob(name="worker", num_tasks=len(workers))],
    )
    tf.get_logger().setLevel("ERROR")  # it warns of slowness in what is done once
    # While it waits nothing else runs in this process; for a worker that dies just now.
    faulthandler.dump_traceback_later(wait_seconds, exit=True)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    finally:
        faulthandler.cancel_dump_traceback_later()


def _tpu(_: float) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, tf.errors.OpError) as error:
        raise PipelineError(
            "strategy tpu: no TPU was found: choose another with --strategy"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def _mirrored(_: float) -> tf.distribute.Strategy:
    return tf.distribute.MirroredStrategy()


STRATEGIES: dict[str, Callable[[float], tf.distribute.Strategy]] = {
    "one": _one,
    "mirrored": _mirrored,
    "multiworker": _multiworker,
    "tpu": _tpu,
}


class WaitLimit:
    """Ends the process when what happens within it takes too long.

    A collective operation whose partner neither answers nor dies cannot be interrupted from Python,
    and TensorFlow's own time-outs cost a sleeping thread for each operation.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: float | None = None
        threading.Thread(target=self._watch, daemon=True).start()

    def __enter__(self) -> None:
        self._until = time.monotonic() + self._seconds

    def __exit__(self, *_: object) -> None:
        self._until = None

    def _watch(self) -> None:
        while True:
            time.sleep(1)
            until = self._until
            if until and time.monotonic() > until:
                print(
                    f"pipeline: error: another worker has not answered for {self._seconds:.0f} s: "
                    "start all workers again with the same --run",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(2)


def start(name: str, wait_seconds: float = WAIT_SECONDS) -> tf.distribute.Strategy:
    """Start a strategy; `multiworker` waits for its workers, for so long.

    Raises:
        PipelineError: it cannot be had.
    """
    try:
        return STRATEGIES[name](wait_seconds)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise PipelineError(f"strategy {name} cannot start: {reason(error)}") from error


def distribute(
    strategy: tf.distribute.Strategy,
    batches: Callable[[tf.distribute.InputContext], tf.data.Dataset],
) -> Iterator:
    """What `batches` makes in each worker's context, as batches for the strategy's replicas.

    A single CPU takes them as they are: TensorFlow's iterators that send them to replicas have an
    autotuner of their own, for which see `dataset.untuned`.
    """
    if strategy.num_replicas_in_sync == 1 and "CPU" in strategy.extended.worker_devices[0]:
        return iter(batches(tf.distribute.InputContext()))
    return iter(strategy.distribute_datasets_from_function(batches))


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that prints and writes."""
    resolver = strategy.cluster_resolver
    return resolver is None or not resolver.task_id


def barrier(strategy: tf.distribute.Strategy) -> None:
    """Wait until every worker is here."""

    @tf.function  # else TensorFlow waits in threads, which complain at the end if one is gone
    def meet():
        ones = strategy.run(lambda: tf.constant(1.0))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, ones, axis=None)

    meet()


def _cluster() -> tuple[list[str], int]:
    """The workers' addresses in TF_CONFIG, and which of them this is."""
    try:
        cluster = json.loads(os.environ.get("TF_CONFIG", "{}"))
        workers, index = cluster["cluster"]["worker"], cluster["task"]["index"]
        known = cluster["task"]["type"] == "worker" and 0 <= index < len(workers)
        ports = [int(worker.rpartition(":")[2]) for worker in workers]
        known &= all(0 < port < 65536 for port in ports)
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known or not ports:
        raise PipelineError(
            "strategy multiworker cannot start: TF_CONFIG must hold "
            '{"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": N}}'
        )
    return workers, index


def _meet(workers: list[str], index: int, wait_seconds: float) -> None:
    """Wait until every worker's port is open; TensorFlow's own wait has no end."""
    until = time.monotonic() + wait_seconds
    with socket.create_server(("", int(workers[index].rpartition(":")[2]))):
        for worker in workers:
            while not _answers(worker):
                if time.monotonic() > until:
                    raise PipelineError(
                        f"worker {worker} has not come within {wait_seconds:.0f} s: start it, or "
                        "mend its address in TF_CONFIG, and start all workers again"
                    )
                time.sleep(0.5)


def _answers(worker: str) -> bool:
    host, _, port = worker.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True
