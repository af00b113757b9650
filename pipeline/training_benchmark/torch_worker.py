"""torchvision's GoogLeNet in PyTorch, as a worker of `compare`.

    python -m pipeline.training_benchmark.torch_worker '{"image_size": 224, "classes": 1000, …}'

trains on batches that lie in memory, float32 and channels last, with as many threads as PyTorch
chooses. Variant `torchvision` is torchvision's network as it is; for `batch_norm` its layers are
changed where that variant has others, so that both frameworks do the same work.
"""

import itertools
import sys
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.googlenet import BasicConv2d, Inception

from pipeline.training_benchmark import worker
from pipeline.training_benchmark.worker import Data, Step

BATCHES = 4  # in turn
AUXILIARY_WEIGHT = 0.3


def start(settings: dict[str, Any]) -> Data:
    """Build the network and its step.

    Args:
        settings: `image_size`, `batch_size`, `classes`; `variant`, `torchvision` or `batch_norm`,
            and `stem`, `imagenet` or `tiny`, as in `googlenet`; `auxiliary_heads`, `bf16` and
            `compile`, booleans.
    """
    torch.manual_seed(1)
    network = build(
        settings["classes"], settings["variant"], settings["stem"], settings["auxiliary_heads"]
    )
    model = torch.compile(network) if settings["compile"] else network
    optimizer = torch.optim.SGD(
        network.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    size, batch_size, classes = settings["image_size"], settings["batch_size"], settings["classes"]
    batches = itertools.cycle(
        [
            (
                torch.rand(batch_size, 3, size, size).to(memory_format=torch.channels_last),
                torch.randint(classes, (batch_size,)),
            )
            for _ in range(BATCHES)
        ]
    )

    def step() -> int:
        pixels, labels = next(batches)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings["bf16"]):
            outputs = model(pixels)
        loss(outputs, labels).backward()
        optimizer.step()
        return batch_size

    def opened() -> Step:
        return step

    return {"synthetic": opened}


def build(classes: int, variant: str, stem: str, auxiliary_heads: bool) -> nn.Module:
    """The network of torchvision in training, with the layers of a variant and a stem."""
    network = torchvision.models.googlenet(
        num_classes=classes, aux_logits=auxiliary_heads, init_weights=False
    )
    if stem == "tiny":
        network.conv1 = BasicConv2d(3, 64, kernel_size=3, stride=1, padding=1)
        network.maxpool1 = nn.Identity()
    if variant == "batch_norm":
        network.maxpool4 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        for block in network.modules():
            if isinstance(block, Inception):
                convolution = block.branch3[1].conv
                block.branch3[1] = BasicConv2d(
                    convolution.in_channels, convolution.out_channels, kernel_size=5, padding=2
                )
    return network.to(memory_format=torch.channels_last).train()


def loss(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of one head's logits [B,C], or of all three."""
    cross_entropy = nn.functional.cross_entropy
    if isinstance(outputs, torch.Tensor):
        return cross_entropy(outputs.float(), labels)
    heads = (outputs.aux_logits1, outputs.aux_logits2)
    auxiliary = sum(cross_entropy(logits.float(), labels) for logits in heads)
    return cross_entropy(outputs.logits.float(), labels) + AUXILIARY_WEIGHT * auxiliary


if __name__ == "__main__":
    libraries = {"PyTorch": torch.__version__, "torchvision": torchvision.__version__}
    sys.exit(worker.serve(libraries, start))
