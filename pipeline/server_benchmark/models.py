"""The SavedModels that are served: GoogLeNet with random weights, and a line.

    python -m pipeline.server_benchmark.models FOLDER

writes FOLDER/<name>/1 for each precision, `export` and `line`, in a minute.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import tensorflow as tf

from pipeline import export, inference_graph
from pipeline.graph_benchmark import inputs
from pipeline.graph_benchmark.tensorflow_worker import STEM, VARIANT, network

PRECISIONS = ("fp32", "bf16", "int8")
EXPORT = "export"  # as `make export` writes it: fp32, four signatures, warm-up requests
LINE = "line"


def write(folder: Path) -> None:
    """Write them all: `images` uint8 [N,224,224,3] to `logits`, and `x` float32 [N] to `y`."""
    model = network()
    calibration = [tf.constant(batch) for batch in inputs.calibration()]
    limits = inference_graph.calibrate(model, VARIANT, STEM, calibration)
    pixels = tf.TensorSpec([None, inputs.IMAGE_SIZE, inputs.IMAGE_SIZE, 3], tf.uint8, "images")
    for precision in PRECISIONS:
        ranges = limits if precision == "int8" else None
        graph = inference_graph.build(model, VARIANT, STEM, precision, ranges)
        _save(folder / precision, lambda images, graph=graph: graph(images)["logits"], pixels)
        if precision == "fp32":
            names = tuple(map(str, range(inputs.CLASSES)))
            export.save(graph, names, inputs.IMAGE_SIZE, folder / EXPORT / "1")
    _save(folder / LINE, lambda x: 0.5 * x + 2.0, tf.TensorSpec([None], tf.float32, "x"))


def _save(base_path: Path, function, *inputs: tf.TensorSpec) -> None:
    module = tf.Module()
    module.serve = tf.function(lambda *args: {"y": function(*args)}, input_signature=inputs)
    tf.saved_model.save(
        module, str(base_path / "1"), {"serving_default": module.serve.get_concrete_function()}
    )


if __name__ == "__main__":
    write(Path(sys.argv[1]))
