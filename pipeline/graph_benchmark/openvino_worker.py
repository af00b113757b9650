"""The network in OpenVINO, as a worker of `compare`.

    python -m pipeline.graph_benchmark.openvino_worker '{"model": "…", "precision": "int8"}'

int8 is NNCF's post-training quantization with its defaults, calibrated on the same pictures as
ours.
"""

import sys
from typing import Any

import nncf
import openvino

from pipeline.graph_benchmark import inputs
from pipeline.training_benchmark import worker
from pipeline.training_benchmark.worker import Data

HINTS = {"fp32": {"INFERENCE_PRECISION_HINT": "f32"}, "bf16": {"INFERENCE_PRECISION_HINT": "bf16"}}


def start(settings: dict[str, Any]) -> Data:
    """Compile the file of `settings` in its `precision`: fp32, bf16 or int8."""
    model, precision = openvino.Core().read_model(settings["model"]), settings["precision"]
    if precision == "int8":
        batches = inputs.calibration()
        model = nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches))
    compiled = openvino.compile_model(
        model, "CPU", {"PERFORMANCE_HINT": "LATENCY", **HINTS.get(precision, {})}
    )
    return inputs.data(lambda batch: compiled(batch)["logits"])


if __name__ == "__main__":
    versions = {"OpenVINO": openvino.__version__.split("-")[0], "NNCF": nncf.__version__}
    sys.exit(worker.serve(versions, start))
