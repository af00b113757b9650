"""Images, or made ones -> requests as they go over the wire, and the answers that are expected."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfs_client import _calls, _tensors, tfs_pb2
from tfs_client._client import Client
from tfs_client._errors import Asked, InvalidImageError, TFSError
from tfs_client._results import Metadata, Signature
from tfs_client._tensors import Array

DTYPES = {"encoded": "bytes", "uint8": "uint8", "float32": "float32"}
MADE = 64  # different images, so that no cache can answer
SIZE = 224
_IMAGE_OUTPUTS = ("classes", "scores", "valid")
_RELATIVE, _ABSOLUTE = 1e-2, 1e-3  # differences of what is computed in other batches


@dataclass
class Payload:
    """One request.

    Attributes:
        request: a PredictRequest's bytes.
        images: how many are in it.
        expected: what must come back, by output: the best class of each image where the outputs
            have classes, all values elsewhere.
    """

    request: bytes
    images: int
    expected: dict[str, Array] = field(default_factory=dict)
    _right: bytes = field(default=b"", repr=False)  # the last answer that was

    def is_right(self, response: bytes) -> bool:
        """Whether an answer is the expected one."""
        if response != self._right:
            found = _essence(_outputs(response))
            if found.keys() != self.expected.keys():
                return False
            if not all(_same(found[name], value) for name, value in self.expected.items()):
                return False
            self._right = response
        return True


def make(
    client: Client,
    kind: str = "encoded",
    images: Sequence[str] = (),
    *,
    size: int = SIZE,
    batch: int = 1,
    signature: str | None = None,
    seed: int = 0,
) -> list[Payload]:
    """Requests that have each image once, and are sent once beforehand to learn their answers.

    Args:
        client: of the server.
        kind: one of `DTYPES`.
        images: paths; none for made ones.
        size: height and width of made images and of pixels.
        batch: images in a request.
        signature: None for the first that takes such a tensor.
        seed: of made images.

    Raises:
        TFSError: no signature takes this, a file cannot be read, the server refuses, or Pillow is
            not installed and would be needed.
    """
    metadata = client.metadata()
    name, alias, items = inputs(metadata, kind, images, size=size, signature=signature, seed=seed)
    has = metadata.signatures[name].outputs.keys()
    outputs = _IMAGE_OUTPUTS if set(_IMAGE_OUTPUTS) <= has else ()
    asked = Asked(client.model, client._version, name)
    made = []
    for position in range(0, len(items), batch):
        rows = [(position + row) % len(items) for row in range(batch)]
        value = stack([items[row] for row in rows], kind)
        call = _calls.predict(asked, {alias: value}, outputs)
        answer = client.predict({alias: value}, signature=name, outputs=outputs)
        if "valid" in answer.outputs and not answer["valid"].all():
            bad = rows[int(np.argmin(answer["valid"]))]
            named = images[bad] if images else f"made image {bad}"
            raise InvalidImageError(named, "the server could not decode it", bad)
        made.append(Payload(call.request, batch, _essence(answer.outputs)))
    return made


def inputs(
    metadata: Metadata,
    kind: str,
    images: Sequence[str],
    *,
    size: int = SIZE,
    signature: str | None = None,
    seed: int = 0,
) -> tuple[str, str, list[Any]]:
    """The signature to call, the name of its input, and the images, for `stack` to make tensors of.

    The arguments are those of `make`.

    Raises:
        TFSError: as `make`, but for what the server says.
    """
    name, spec = _signature(metadata, kind, signature)
    alias, tensor = next(iter(spec.inputs.items()))
    sources = [_read(path) for path in images]
    if kind == "encoded":
        return name, alias, sources or [_encode(each) for each in _pictures(MADE, size, seed)]
    if sources:
        pairs = zip(images, sources, strict=True)
        return name, alias, [_decode(path, content, size) for path, content in pairs]
    shape = tuple(size if n < 0 else n for n in (tensor.shape or (-1, size, size, 3))[1:])
    if len(shape) == 3 and shape[2] == 3 and shape[0] == shape[1]:
        return name, alias, list(_pictures(MADE, shape[0], seed))
    return name, alias, list(np.random.default_rng(seed).random((MADE, *shape)) * 255)


def _signature(metadata: Metadata, kind: str, name: str | None) -> tuple[str, Signature]:
    """The signature that is to be called."""
    found = metadata.signatures
    if name is not None and name not in found:
        raise TFSError(f"no signature {name!r}: there are {', '.join(found)}")
    candidates = [name] if name is not None else sorted(found, key="serving_default".__ne__)
    for each in candidates:
        taken = list(found[each].inputs.values())
        takes_it = len(taken) == 1 and taken[0].dtype == DTYPES[kind]
        if takes_it and found[each].method.endswith("/predict"):
            return each, found[each]
    raise TFSError(
        f"{metadata.model} has no signature that takes one {DTYPES[kind]} tensor: choose another "
        f"payload; `tfs metadata` lists them"
    )


def stack(items: Sequence[Any], kind: str) -> Array:
    """One tensor of several images."""
    if kind == "encoded":
        return np.array(items, dtype=object)
    return np.stack(items).astype(DTYPES[kind])


def _outputs(response: bytes) -> dict[str, Array]:
    found = tfs_pb2.PredictResponse.FromString(response).outputs
    return {name: _tensors.from_proto(proto) for name, proto in found.items()}


def _essence(outputs: dict[str, Array]) -> dict[str, Array]:
    """What an answer is checked by."""
    if "classes" in outputs:
        return {"classes": outputs["classes"][:, :1]}
    return dict(outputs)


def _same(found: Array, expected: Array) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if expected.dtype.kind == "f":
        return bool(np.allclose(found, expected, _RELATIVE, _ABSOLUTE))
    return bool(np.array_equal(found, expected))


# --- images ---


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise TFSError(f"{path}: cannot be read: {error.strerror}") from error


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise TFSError(
            "pixels of images, and made images, need Pillow: pip install 'tfs-client[bench]'"
        ) from None
    return Image


def _decode(path: str, content: bytes, size: int) -> Array:
    """Pixels [size, size, 3]."""
    library = _pillow()
    try:
        image = library.open(io.BytesIO(content)).convert("RGB").resize((size, size))
    except (OSError, ValueError, library.DecompressionBombError) as error:
        raise TFSError(f"{path}: is no image: {error}") from error
    return np.asarray(image)


def _pictures(count: int, size: int, seed: int) -> Iterator[Array]:
    """Pixels [size, size, 3] with as much detail as a photo has, so that they compress alike."""
    library = _pillow()
    chance = np.random.default_rng(seed)
    for _ in range(count):
        layers = [
            np.asarray(
                library.fromarray(chance.integers(0, 256, (side, side, 3), np.uint8)).resize(
                    (size, size), library.Resampling.BICUBIC
                ),
                np.float32,
            )
            for side in (4, 16, 64)
        ]
        yield (layers[0] * 0.6 + layers[1] * 0.3 + layers[2] * 0.1).astype(np.uint8)


def _encode(pixels: Array) -> bytes:
    content = io.BytesIO()
    _pillow().fromarray(pixels).save(content, "JPEG", quality=90)
    return content.getvalue()
