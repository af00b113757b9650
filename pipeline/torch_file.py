"""PyTorch checkpoint files read without PyTorch: a state dict's tensors and nothing else.

Both formats of `torch.save` are read: the zip file of torch 1.6 and newer, and the row of pickles
before it. Source: torch/serialization.py, `_load` and `_legacy_load`. A pickle may name any
function to be called; only the names in `_Unpickler` are known here, so no code of a file runs.
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from pipeline.errors import PipelineError

# numpy has no bfloat16: its bits are read as integers, then widened to float32.
BFLOAT16 = np.dtype("<u2")
STORAGES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype("<i8"),
}
WRAPPERS = ("state_dict", "model")  # keys under which training scripts keep the state dict
PARALLEL = "module."  # DataParallel's prefix of every name

_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # its first pickle
_ADVICE = "save the tensors alone, torch.save(model.state_dict(), file)"


def read(path: Path) -> dict[str, np.ndarray]:
    """A checkpoint's tensors by name, in its order; bfloat16 ones as float32.

    The state dict may lie under one of `WRAPPERS`, and all names may begin with `PARALLEL`.

    Raises:
        PipelineError: the file cannot be read, is no checkpoint, is cut short, or holds or names
            anything but dense tensors of the types in `STORAGES`.
    """
    try:
        with path.open("rb") as file:
            tensors, storages = _load(file)
        return {name: _array(name, x, storages) for name, x in _state_dict(tensors).items()}
    except _UnfitError as unfit:
        raise PipelineError(f"{path} {unfit}") from None
    except OSError as error:
        reason = error.strerror or error
        raise PipelineError(f"cannot read {path}: {reason}: name a checkpoint file") from error
    except Exception as error:  # a damaged pickle may raise anything, says pickle's documentation
        raise PipelineError(f"{path} is damaged or cut short ({error}): fetch it again") from error


class _UnfitError(Exception):
    """Why a file is not taken; its name goes before the sentence."""


class _Storage(NamedTuple):
    name: str  # a key of STORAGES
    key: str


class _Tensor(NamedTuple):
    """A window on a storage, offset and strides in elements; not checked yet."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Knows the few names of a state dict; `sizes` gathers the bytes of each storage by its key."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.sizes: dict[str, int] = {}
        # Bound methods and strings: a pickle can change attributes of neither.
        self._known = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": self._parameter,
        } | {f"torch.{name}": name for name in STORAGES}

    def find_class(self, module: str, name: str) -> object:
        known = self._known.get(f"{module}.{name}")
        if known is None:
            raise _UnfitError(f"names {module}.{name}, which tensors do not need: {_ADVICE}")
        return known

    def persistent_load(self, pid: tuple) -> _Storage:
        kind, name, key, _device, count, *view = pid
        if kind != "storage" or any(view):
            raise _UnfitError(f"holds a {kind} that is not a plain tensor's: {_ADVICE}")
        self.sizes[key] = count * STORAGES[name].itemsize
        return _Storage(name, key)

    def _tensor(self, storage, offset, shape, strides, _grad, _hooks, metadata=None) -> _Tensor:
        if metadata:
            raise _UnfitError(f"holds a tensor with {metadata}: {_ADVICE}")
        return _Tensor(storage, offset, shape, strides)

    def _parameter(self, tensor: _Tensor, _grad, _hooks) -> _Tensor:
        return tensor


def _load(file: IO[bytes]) -> tuple[object, dict[str, bytes]]:
    """The unpickled object, and the bytes of each storage by its key."""
    head = file.read(len(_LEGACY))
    file.seek(0)
    if head.startswith(b"PK\x03\x04"):
        return _load_zip(zipfile.ZipFile(file))
    if head == _LEGACY:
        return _load_legacy(file)
    raise _UnfitError("is not a PyTorch checkpoint: name a file that torch.save wrote")


def _load_zip(archive: zipfile.ZipFile) -> tuple[object, dict[str, bytes]]:
    """`data.pkl`, `byteorder` (since torch 2.1) and `data/<key>`, all in one folder."""
    names = archive.namelist()
    folder = next((name[:-8] for name in names if name.endswith("/data.pkl")), None)
    if folder is None:
        raise _UnfitError("is a zip file but not one that torch.save wrote: name another")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise _UnfitError(f"is compressed, which torch.save never does: {_ADVICE}")
    order = f"{folder}byteorder"
    _check_byte_order(order not in names or archive.read(order) == b"little")
    with archive.open(f"{folder}data.pkl") as pickled:
        unpickler = _Unpickler(pickled)
        loaded = unpickler.load()
    return loaded, {key: archive.read(f"{folder}data/{key}") for key in unpickler.sizes}


def _load_legacy(file: IO[bytes]) -> tuple[object, dict[str, bytes]]:
    """Five pickles, then of each storage the count of elements, int64, and the bytes."""
    _magic, _version, system = (_Unpickler(file).load() for _ in range(3))
    _check_byte_order(system["little_endian"])
    unpickler = _Unpickler(file)
    loaded = unpickler.load()
    storages = {}
    for key in _Unpickler(file).load():
        size = 8 + unpickler.sizes[key]
        data = file.read(size)
        if len(data) < size:
            raise EOFError(f"storage {key} is not whole")
        storages[key] = data[8:]
    return loaded, storages


def _check_byte_order(little_endian: bool) -> None:
    if not little_endian:
        raise _UnfitError("is of a big-endian machine: save it again on another")


def _state_dict(loaded: object) -> dict[str, _Tensor]:
    """Names and tensors, without the wrapper and the prefix that training scripts add."""
    if isinstance(loaded, dict):
        loaded = next((loaded[key] for key in WRAPPERS if key in loaded), loaded)
    if not isinstance(loaded, dict) or not loaded:
        raise _UnfitError(f"holds no state dict: {_ADVICE}")
    for name, tensor in loaded.items():
        if not isinstance(tensor, _Tensor):
            kind = type(tensor).__name__
            raise _UnfitError(f"holds {name!r}, of type {kind}, among its tensors: {_ADVICE}")
    parallel = all(name.startswith(PARALLEL) for name in loaded)
    return {name.removeprefix(PARALLEL) if parallel else name: x for name, x in loaded.items()}


def _array(name: str, tensor: _Tensor, storages: dict[str, bytes]) -> np.ndarray:
    storage, offset, shape, strides = tensor
    elements: np.ndarray = np.frombuffer(storages[storage.key], STORAGES[storage.name])
    if elements.dtype == BFLOAT16:
        elements = (elements.astype(np.uint32) << 16).view(np.float32)
    count = math.prod(shape)
    steps = ((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    end = offset + sum(steps) + 1 if count else 0
    # More elements than the storage has would repeat some: a few bytes could fill the memory.
    if min((offset, *shape, *strides)) < 0 or max(count, end) > len(elements):
        raise _UnfitError(f"has tensor {name!r} beyond its storage's end: fetch it again")
    strided = np.lib.stride_tricks.as_strided
    return np.array(strided(elements[offset:], shape, [n * elements.itemsize for n in strides]))
