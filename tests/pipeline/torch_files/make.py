"""Write the checkpoints beside this file, with PyTorch 2.13:

    python tests/pipeline/torch_files/make.py

`zip.pth` and `legacy.pth` hold `tensors()`, and `expected.npz` their values. `sparse.pth` holds one
that is not dense.
"""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent


def tensors() -> OrderedDict[str, torch.Tensor]:
    """Every kind of tensor that a state dict has, and the ways to lie in a storage."""
    torch.manual_seed(1)
    shared = torch.randn(12)
    state = OrderedDict(
        plain=torch.randn(2, 3),
        parameter=torch.nn.Parameter(torch.randn(4)),
        transposed=torch.randn(2, 3).t(),
        strided=torch.randn(4, 6)[1::2, ::3],
        shared_first=shared[:6].view(2, 3),
        shared_last=shared[6:],
        half=torch.randn(3).half(),
        bfloat16=torch.tensor([1.0, -2.5, 3.140625e10, 1e-20, 0.0]).bfloat16(),
        double=torch.randn(2, dtype=torch.float64),
        num_batches_tracked=torch.tensor(7),
        empty=torch.zeros(0, 3),
    )
    state._metadata = OrderedDict({"": {"version": 1}})  # as Module.state_dict() has it
    return state


def main() -> None:
    """Write all files."""
    state = tensors()
    torch.save(state, HERE / "zip.pth")
    torch.save(state, HERE / "legacy.pth", _use_new_zipfile_serialization=False)
    np.savez_compressed(
        HERE / "expected.npz",
        **{
            name: (x.float() if x.dtype == torch.bfloat16 else x).detach().numpy()
            for name, x in state.items()
        },
    )
    torch.save({"sparse": torch.eye(2).to_sparse()}, HERE / "sparse.pth")


if __name__ == "__main__":
    main()
