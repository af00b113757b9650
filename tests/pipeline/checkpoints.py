"""PyTorch checkpoints written without PyTorch, with any content: a state dict, or a trap."""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np


class Global:
    """Pickles as the name `module.name`, which need not be there."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """Pickles as a call of a global."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments


class Pickler(pickle._Pickler):  # the one in Python lets us write what we like
    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)

    def persistent_id(self, obj):
        return obj[1:] if isinstance(obj, tuple) and obj and obj[0] == "persistent" else None


def zip_file(path: Path, value: object, storages: tuple[bytes, ...] = (bytes(16),)) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("archive/data.pkl", "w") as file:
            Pickler(file, protocol=2).dump(value)
        for key, storage in enumerate(storages):
            archive.writestr(f"archive/data/{key}", storage)
    return path


def state_file(path: Path, state: dict[str, np.ndarray]) -> Path:
    """A checkpoint as `torch.save` would write it, of float32 and int64 arrays."""
    kinds = {np.dtype("<f4"): "FloatStorage", np.dtype("<i8"): "LongStorage"}
    tensors = OrderedDict()
    for key, (name, x) in enumerate(state.items()):
        strides = tuple(step // x.itemsize for step in x.strides)
        tensors[name] = tensor(0, x.shape, strides, kinds[x.dtype], x.size, str(key))
    return zip_file(path, tensors, tuple(x.tobytes() for x in state.values()))


def legacy_file(path: Path, value: object) -> Path:
    with path.open("wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, value, []):
            Pickler(file, protocol=2).dump(part)
    return path


def tensor(offset=0, shape=(4,), strides=(1,), storage="FloatStorage", count=4, key="0") -> Call:
    pid = ("persistent", "storage", Global("torch", storage), key, "cpu", count)
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, pid, offset, shape, strides, False, OrderedDict())
