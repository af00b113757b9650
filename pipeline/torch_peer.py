"""torchvision's GoogLeNet in PyTorch, as a worker of `training_benchmark`.

    python -m pipeline.torch_peer '{"image_size": 224, "batch_size": 32, "classes": 1000, …}'

trains on batches that lie in memory, float32 and channels last, with as many threads as PyTorch
chooses. The network is torchvision's own: 3×3 in the "5×5" branches, where the paper and this
project have 5×5.
"""

import itertools
import sys
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.googlenet import BasicConv2d

from pipeline import benchmark_worker
from pipeline.benchmark_worker import Data, Step

BATCHES = 4  # in turn
AUXILIARY_WEIGHT = 0.3


def start(settings: dict[str, Any]) -> Data:
    """Build the network and its step.

    Args:
        settings: `image_size`, `batch_size`, `classes`; `stem`, `imagenet` or `tiny` as in
            `googlenet.STEMS`; `auxiliary_heads`, `bf16` and `compile`, booleans.
    """
    torch.manual_seed(1)
    network = build(settings["classes"], settings["stem"], settings["auxiliary_heads"])
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


def build(classes: int, stem: str, auxiliary_heads: bool) -> nn.Module:
    """The network of torchvision in training, with one of two stems."""
    network = torchvision.models.googlenet(
        num_classes=classes, aux_logits=auxiliary_heads, init_weights=False
    )
    if stem == "tiny":
        network.conv1 = BasicConv2d(3, 64, kernel_size=3, stride=1, padding=1)
        network.maxpool1 = nn.Identity()
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
    sys.exit(benchmark_worker.serve(libraries, start))
