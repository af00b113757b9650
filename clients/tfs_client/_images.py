"""Images as people have them -> the tensors of a request."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import numpy as np

from tfs_client import _tensors, tfs_pb2
from tfs_client._errors import InvalidImageError

Image = Union[
    str, "os.PathLike[str]", bytes, bytearray, memoryview, "np.ndarray[Any, np.dtype[np.uint8]]"
]
"""A file's path, an encoded image (JPEG, PNG, GIF or BMP), or uint8 pixels [H,W,3]."""


@dataclass(frozen=True)
class Prepared:
    """One image ready to be sent.

    Attributes:
        position: in the call, from 0.
        name: what errors call it.
        content: encoded bytes, or uint8 pixels [H,W,3].
    """

    position: int
    name: str
    content: bytes | _tensors.Array

    @property
    def kind(self) -> tuple[int, ...]:
        """Images of one kind fit in one request: the shape of pixels, () for encoded images."""
        return () if isinstance(self.content, bytes) else self.content.shape


def is_single(images: Image | Iterable[Image]) -> bool:
    """Whether this is one image rather than several; pixels [N,H,W,3] are several."""
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    return isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike))


def prepare(position: int, image: Image) -> Prepared:
    """Read and check one image.

    Raises:
        InvalidImageError: no such file, or pixels of another dtype or shape.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        return Prepared(position, f"image {position}", bytes(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InvalidImageError(
                f"image {position}",
                f"pixels must be uint8 [height, width, 3], not {image.dtype} {list(image.shape)}",
            )
        return Prepared(position, f"image {position}", image)
    if not isinstance(image, (str, os.PathLike)):
        raise InvalidImageError(
            f"image {position}", f"is a {type(image).__name__}, not a path, bytes or an array"
        )
    name = os.fspath(image)
    if not name:
        raise InvalidImageError(f"image {position}", "has an empty path")
    try:
        return Prepared(position, name, Path(name).read_bytes())
    except OSError as error:
        raise InvalidImageError(name, f"cannot be read: {error.strerror}") from error


def batches(images: Iterable[Prepared], size: int) -> Iterator[list[Prepared]]:
    """Group images that fit in one request, at most `size` to a group."""
    open_batches: dict[tuple[int, ...], list[Prepared]] = {}
    for image in images:
        batch = open_batches.setdefault(image.kind, [])
        batch.append(image)
        if len(batch) == size:
            yield open_batches.pop(image.kind)
    yield from open_batches.values()


def to_input(batch: list[Prepared]) -> tuple[str, str, tfs_pb2.TensorProto]:
    """A group as (signature, input name, tensor)."""
    encoded = [image.content for image in batch if isinstance(image.content, bytes)]
    if encoded:
        return "serving_default", "image_bytes", _tensors.strings_to_proto(encoded)
    pixels = np.stack([image.content for image in batch])
    return "predict_images", "images", _tensors.to_proto(pixels)
