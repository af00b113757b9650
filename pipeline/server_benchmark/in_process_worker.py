"""A SavedModel run in process, as TensorFlow's own session runs it; a worker of `compare`.

python -m pipeline.server_benchmark.in_process_worker '{"model": "folder/int8/1", "intra_op": 0}'
"""

import os
import sys
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from pipeline.graph_benchmark import inputs
from pipeline.training_benchmark import worker
from pipeline.training_benchmark.worker import Data, Step
from serving.session import Session

# Threads within an operation, 0 for one per core -> batches at a time, and rows of each. The first
# is a process's and cannot be changed later.
SHAPES = {
    0: tuple((batches, rows) for batches in (1, 2) for rows in (8, 16, 32)),
    1: tuple((2, rows) for rows in (8, 16, 32)),
}
RUNS = 2  # of each thread in a step: at its end one waits for the other


def name(batches: int, rows: int) -> str:
    return f"{batches} × {rows}"


def start(settings: dict[str, Any]) -> Data:
    """Load the model; its data are batches of each of its `SHAPES`."""
    intra_op = settings["intra_op"]
    config = config_pb2.ConfigProto(intra_op_parallelism_threads=intra_op)
    session = Session(Path(settings["model"]), config)
    signature = session.signatures["serving_default"]
    fetches = [signature.outputs["y"].name]

    def opened(batches: int, rows: int) -> Callable[[], Step]:
        feeds = {signature.inputs["images"].name: inputs.pictures(rows)}
        pool = futures.ThreadPoolExecutor(batches)

        def step() -> int:
            runs = [pool.submit(session.run, feeds, fetches) for _ in range(RUNS * batches)]
            futures.wait(runs)
            return sum(len(run.result()[0]) for run in runs)

        return lambda: step

    return {name(*shape): opened(*shape) for shape in SHAPES[intra_op]}


if __name__ == "__main__":
    sys.exit(worker.serve({"TensorFlow": tf.__version__}, start))
