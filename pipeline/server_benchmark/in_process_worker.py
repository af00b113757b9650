"""A SavedModel run in process, as TensorFlow's own session runs it; a worker of `compare`.

python -m pipeline.server_benchmark.in_process_worker '{"model": "folder/int8/1"}'
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

from pipeline.graph_benchmark import inputs
from pipeline.training_benchmark import worker
from pipeline.training_benchmark.worker import Data, Step
from serving.session import Session

# Threads that run batches at a time, and rows of each.
SHAPES = tuple((threads, rows) for threads in (1, 2) for rows in (8, 16, 32))


def name(threads: int, rows: int) -> str:
    return f"{threads} × {rows}"


def start(settings: dict[str, Any]) -> Data:
    """Load the model; its data are batches of each of `SHAPES`."""
    session = Session(Path(settings["model"]))
    signature = session.signatures["serving_default"]
    fetches = [signature.outputs["y"].name]
    pool = futures.ThreadPoolExecutor(max(threads for threads, _ in SHAPES))

    def opened(threads: int, rows: int) -> Callable[[], Step]:
        feeds = {signature.inputs["images"].name: inputs.pictures(rows)}

        def step() -> int:
            runs = [pool.submit(session.run, feeds, fetches) for _ in range(threads)]
            futures.wait(runs)
            return sum(len(run.result()[0]) for run in runs)

        return lambda: step

    return {name(*shape): opened(*shape) for shape in SHAPES}


if __name__ == "__main__":
    sys.exit(worker.serve({"TensorFlow": tf.__version__}, start))
