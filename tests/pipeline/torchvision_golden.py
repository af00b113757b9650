"""What torchvision's GoogLeNet answers, for `test_weights.py`, which needs no PyTorch.

    python tests/pipeline/torchvision_golden.py

writes torchvision_golden.npz beside this file: for each of `SIZES`, float32 [2,10] `logits`, `aux1`
and `aux2` of the network with the weights of `tensor` on `pixels`. Needs torch and torchvision
(made with 2.13 and 0.28) and numpy; ten seconds. With the name of a folder, it writes the file
there, and the checkpoint in both formats.
"""

import sys
import zlib
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".npz")
CLASSES = 10
SIZES = (224, 96, 75)  # the sides within the last are odd: there pooling differs most
# ImageNet's, by which torchvision's users normalise.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of the state dict: float32, random, of the scale that training would give it."""
    # Its numbers are the same in every version of numpy, unlike those of default_rng.
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if len(shape) > 1:  # He's initialisation; less for classifiers: logits of 1 to 10
        gain = 0.4 if name in {"fc.weight", "aux1.fc2.weight", "aux2.fc2.weight"} else 2
        values = random.normal(0, np.sqrt(gain / np.prod(shape[1:])), shape)
    elif name.endswith(("bn.weight", "running_var")):
        values = random.uniform(0.5, 1.5, shape)
    else:
        values = random.normal(0, 0.1, shape)
    return values.astype(np.float32)


def pixels(size: int) -> np.ndarray:
    """Two pictures of coarse and fine noise, uint8 [2,size,size,3]."""
    random = np.random.RandomState(size)
    coarse = random.randint(0, 192, (2, 8, 8, 3)).repeat(size // 8 + 1, 1).repeat(size // 8 + 1, 2)
    fine = random.randint(0, 64, (2, size, size, 3))
    return (coarse[:, :size, :size] + fine).astype(np.uint8)


def main(folder: Path | None) -> None:
    """Write the answers, and into a folder the checkpoints as well."""
    import torch
    import torchvision

    network = torchvision.models.googlenet(
        num_classes=CLASSES, aux_logits=True, transform_input=True, init_weights=False
    )
    network.load_state_dict(
        {
            name: x if x.ndim == 0 else torch.from_numpy(tensor(name, tuple(x.shape)))
            for name, x in network.state_dict().items()
        }
    )
    golden = {}
    # In evaluation torchvision passes over the auxiliary heads: they are called by hand.
    for name, block in (("aux1", network.inception4a), ("aux2", network.inception4d)):
        head = getattr(network, name)
        block.register_forward_hook(
            lambda _block, _inputs, x, name=name, head=head: golden.update(
                {f"{name}_{size}": head(x).numpy()}
            )
        )
    network.eval()
    with torch.no_grad():
        for size in SIZES:
            normalized = (pixels(size).astype(np.float32) / 255 - MEAN) / STD
            images = torch.from_numpy(normalized.transpose(0, 3, 1, 2).copy())
            golden[f"logits_{size}"] = network(images).numpy()
    np.savez_compressed(folder / FILE.name if folder else FILE, **golden)
    for name, value in golden.items():
        print(f"{name}: {value.std():.2f} around {value.mean():.2f}")
    if folder:
        state = network.state_dict()
        torch.save(state, folder / "zip.pth")
        torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else None)
