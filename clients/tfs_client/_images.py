"""Images as people have them -> the tensors of requests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Union

import numpy as np

from tfs_client import _tensors
from tfs_client._errors import InvalidImageError
from tfs_client._wire import Pieces

if TYPE_CHECKING:
    import PIL.Image

Image = Union[
    str,
    "os.PathLike[str]",
    bytes,
    bytearray,
    memoryview,
    BinaryIO,
    "PIL.Image.Image",
    "np.ndarray[Any, np.dtype[np.uint8]]",
]
"""A file's path, an encoded image (JPEG, PNG, GIF or BMP) or an open file of one, a Pillow image,
or uint8 pixels [H,W,3]."""

NO_IMAGE = "is not a JPEG, PNG, GIF or BMP image"
REACH = 4  # batches: how far behind the newest image the oldest that still waits may lie


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

    @property
    def size(self) -> int:
        """Bytes that it adds to a request."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.nbytes


def is_single(images: Any) -> bool:
    """Whether this is one image rather than several; pixels [N,H,W,3] are several."""
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    one = (str, bytes, bytearray, memoryview, os.PathLike)
    return isinstance(images, one) or hasattr(images, "read") or _is_pillow(images)


def is_in_memory(image: Any) -> bool:
    """Whether preparing it reads no file, which may take its time."""
    return isinstance(image, (bytes, bytearray, memoryview, np.ndarray))


def check_several(images: Any) -> None:
    """Refuse one image.

    Raises:
        TypeError: it is one, whose bytes or letters would be taken for images.
    """
    if is_single(images):
        raise TypeError(f"a {type(images).__name__} is one image: use classify, or give a list")


def _is_pillow(image: Any) -> bool:
    pillow = sys.modules.get("PIL.Image")  # whoever has such an image has loaded it
    return pillow is not None and isinstance(image, pillow.Image)


def prepare(position: int, image: Any) -> Prepared:
    """Read and check one image.

    Raises:
        InvalidImageError: no such file, or pixels of another dtype or shape.
    """
    unnamed = f"image {position}"
    if isinstance(image, (bytes, bytearray, memoryview)):
        return Prepared(position, unnamed, bytes(image))
    if isinstance(image, np.ndarray):
        return Prepared(position, unnamed, _pixels(position, image))
    if _is_pillow(image):
        name = getattr(image, "filename", "") or unnamed
        try:
            return Prepared(position, name, _pixels(position, _rgb(image)))
        except (OSError, ValueError) as error:  # Pillow reads when it must
            raise InvalidImageError(name, f"cannot be read: {error}", position) from error
    if hasattr(image, "read"):
        return _from_file(position, image)
    if not isinstance(image, (str, os.PathLike)):
        raise InvalidImageError(
            unnamed, f"is a {type(image).__name__}, not a path, bytes or an array", position
        )
    name = os.fspath(image)
    if not name:
        raise InvalidImageError(unnamed, "has an empty path", position)
    try:
        with open(name, "rb") as file:  # pathlib would be 0.6 MB more to import
            return Prepared(position, name, file.read())
    except (OSError, ValueError) as error:  # a path with a null character is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise InvalidImageError(name, f"cannot be read: {reason}", position) from error


def _rgb(image: Any) -> _tensors.Array:
    """Of 16 bits the upper 8, as the server takes them from the same picture's file."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} does not say what is white: convert it to L or RGB")
    return np.asarray(image.convert("RGB"))


def _pixels(position: int, image: _tensors.Array) -> _tensors.Array:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InvalidImageError(
            f"image {position}",
            f"pixels must be uint8 [height, width, 3], not {image.dtype} {list(image.shape)}",
            position,
        )
    return image.copy()  # a camera's next picture may be put into the same array


def _from_file(position: int, file: BinaryIO) -> Prepared:
    name = getattr(file, "name", None)
    name = name if isinstance(name, str) else f"image {position}"
    try:
        content = file.read()
    except (OSError, ValueError) as error:
        raise InvalidImageError(name, f"cannot be read: {error}", position) from error
    if not isinstance(content, bytes):
        raise InvalidImageError(name, "is open as text: open it in mode 'rb'", position)
    return Prepared(position, name, content)


def undecodable(image: Prepared) -> InvalidImageError:
    """The error of an image whose row the server marks as not valid."""
    return InvalidImageError(image.name, NO_IMAGE, image.position)


class Grouping:
    """Images -> groups that fit in one request.

    Args:
        most: images in a group.
        most_bytes: of a group, unless one image alone has more.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._waiting: dict[tuple[int, ...], list[Prepared]] = {}  # in the order of their first

    def add(self, image: Prepared) -> Iterator[list[Prepared]]:
        """Take one more image; yields the groups that are now complete."""
        kind, waiting = image.kind, self._waiting
        before = sum(other.size for other in waiting.get(kind, ()))
        if before and before + image.size > self._most_bytes:
            yield waiting.pop(kind)
        group = waiting.setdefault(kind, [])
        group.append(image)
        if len(group) == self._most:
            yield waiting.pop(kind)

    def overdue(self, position: int) -> Iterator[list[Prepared]]:
        """The groups whose first image lies too far behind a position."""
        while self._waiting:
            oldest = next(iter(self._waiting.values()))[0]
            if position - oldest.position < REACH * self._most:
                return
            yield self._waiting.pop(oldest.kind)

    def rest(self) -> Iterator[list[Prepared]]:
        """The groups that are not full."""
        yield from self._waiting.values()


def to_input(batch: list[Prepared]) -> tuple[str, str, Pieces]:
    """A group as (signature, input name, TensorProto)."""
    encoded = [image.content for image in batch if isinstance(image.content, bytes)]
    if encoded:
        return "serving_default", "image_bytes", _tensors.strings(encoded, (len(encoded),))
    pixels = [image.content for image in batch if not isinstance(image.content, bytes)]
    shape = (len(pixels), *pixels[0].shape)
    return "predict_images", "images", _tensors.numbers("uint8", shape, pixels)
