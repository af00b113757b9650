"""The network as an ONNX file, for other runtimes to be measured with: same layers, same weights.

It is built by `googlenet.blocks` from the folded convolutions, as `inference_graph` is, and reads
the same pixels: uint8 [N,S,S,3] to `logits` [N,C].
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import tf_keras as keras
from onnx import TensorProto, helper, numpy_helper

from pipeline import googlenet, inference_graph
from pipeline.googlenet import LRN, VARIANTS, Variant
from pipeline.inference_graph import Convolution

OPSET = 17


class _Node(NamedTuple):
    """An output by name, and its side in pixels."""

    name: str
    side: int


class _Onnx:
    """Layers as ONNX nodes."""

    def __init__(self, variant: Variant, convolutions: dict[str, Convolution]) -> None:
        self.variant = variant
        self.convolutions = convolutions
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, values: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def add(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def read(self, pixels: str, side: int) -> _Node:
        values = self.add("Cast", [pixels], "cast", to=TensorProto.FLOAT)
        scaled = self.add(
            "Mul", [values, self.constant("scale", np.array(1 / 127.5, np.float32))], "scaled"
        )
        centred = self.add(
            "Sub", [scaled, self.constant("one", np.array(1, np.float32))], "centred"
        )
        return _Node(self.add("Transpose", [centred], "planes", perm=[0, 3, 1, 2]), side)

    def conv(self, x: _Node, filters: int, kernel: int, name: str, stride: int = 1) -> _Node:
        folded = self.convolutions[name]
        weights = self.constant(f"{name}_kernel", folded.kernel.transpose(3, 2, 0, 1))
        bias = self.constant(f"{name}_bias", folded.bias)
        padding = {"pads": [kernel // 2] * 4} if self.variant.torch_windows else _SAME
        out = self.add(
            "Conv", [x.name, weights, bias], name, kernel_shape=[kernel] * 2, strides=[stride] * 2,
            **padding,
        )  # fmt: skip
        return _Node(self.add("Relu", [out], f"{name}_relu"), -(-x.side // stride))

    def max_pool(self, x: _Node, size: int, stride: int, name: str) -> _Node:
        valid = googlenet.pool_padding(self.variant, x.side, size, stride) == "valid"
        out = self.add(
            "MaxPool", [x.name], name, kernel_shape=[size] * 2, strides=[stride] * 2,
            auto_pad="VALID" if valid else "SAME_UPPER",
        )  # fmt: skip
        return _Node(out, (x.side - size) // stride + 1 if valid else -(-x.side // stride))

    def lrn(self, x: _Node, name: str) -> _Node:
        size = 2 * int(LRN["depth_radius"]) + 1
        alpha = LRN["alpha"] * size  # ONNX divides it by the window
        out = self.add("LRN", [x.name], name, size=size, alpha=alpha, beta=LRN["beta"], bias=1.0)
        return x._replace(name=out)

    def concat(self, branches: list[_Node], name: str) -> _Node:
        return branches[0]._replace(
            name=self.add("Concat", [x.name for x in branches], name, axis=1)
        )


_SAME = {"auto_pad": "SAME_UPPER"}


def write(network: keras.Model, variant: str, stem: str, path: Path) -> None:
    """Write a network of `googlenet.build`, in float32, as an ONNX file."""
    net = _Onnx(VARIANTS[variant], inference_graph.fold(network))
    side = network.input.shape[1]
    *_, (_, x) = googlenet.blocks(net, net.read("pixels", side), stem)
    kernel, bias = network.get_layer("logits").get_weights()
    average = net.add("GlobalAveragePool", [x.name], "average")
    flat = net.add("Flatten", [average], "embedding")
    dense = [flat, net.constant("logits_kernel", kernel), net.constant("logits_bias", bias)]
    net.add("Gemm", dense, "logits")
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", side, side, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(bias)])
    graph = helper.make_graph(net.nodes, "googlenet", [pixels], [logits], net.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
