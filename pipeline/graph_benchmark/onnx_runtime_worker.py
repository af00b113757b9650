"""The network in ONNX Runtime, in float32, as a worker of `compare`.

python -m pipeline.graph_benchmark.onnx_runtime_worker '{"model": "googlenet.onnx"}'
"""

import sys
from typing import Any

import onnxruntime

from pipeline.graph_benchmark import inputs
from pipeline.training_benchmark import worker
from pipeline.training_benchmark.worker import Data


def start(settings: dict[str, Any]) -> Data:
    """Load the file of `settings`; with as many threads as the runtime chooses."""
    session = onnxruntime.InferenceSession(settings["model"], providers=["CPUExecutionProvider"])
    return inputs.data(lambda batch: session.run(["logits"], {"pixels": batch})[0])


if __name__ == "__main__":
    sys.exit(worker.serve({"ONNX Runtime": onnxruntime.__version__}, start))
