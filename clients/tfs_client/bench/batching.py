"""TensorFlow Serving's batching file, as far as it decides which requests make a batch and when."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format

from tfs_client import tfs_pb2
from tfs_client._errors import TFSError

# 0 is what these are here without a value; as a value, TensorFlow Serving has none.
_ZERO_IS_NONE = ("num_batch_threads", "max_execution_batch_size")


@dataclass(frozen=True)
class Batching:
    """How requests are merged; the defaults are TensorFlow Serving's.

    Attributes:
        max_batch_size: images in a request at the most, and in a batch unless requests are split.
        batch_timeout_micros: how long a batch waits to be filled from its first request on.
        max_enqueued_batches: batches that may wait; beyond them requests are rejected.
        num_batch_threads: batches run at a time; 0 for one per core.
        allowed_batch_sizes: sizes that batches are padded to, rising to max_batch_size also where
            requests are split; none for any size.
        max_execution_batch_size: images in a batch at the most, larger requests being split
            (`enable_large_batch_splitting`); 0 where none is split.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = 0
    allowed_batch_sizes: tuple[int, ...] = ()
    max_execution_batch_size: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("max_batch_size", 1),
            ("batch_timeout_micros", 0),
            ("max_enqueued_batches", 1),
            ("num_batch_threads", 0),
            ("max_execution_batch_size", 0),
        ):
            if getattr(self, name) < least:
                raise TFSError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if self.max_execution_batch_size > self.max_batch_size:
            raise TFSError(
                f"max_execution_batch_size is {self.max_execution_batch_size}: it must not be "
                f"above max_batch_size, {self.max_batch_size}"
            )
        sizes = self.allowed_batch_sizes
        if any(a >= b for a, b in itertools.pairwise(sizes)):
            raise TFSError(f"allowed_batch_sizes {sizes} must rise")
        if sizes and (sizes[0] < 1 or sizes[-1] != self.max_batch_size):
            raise TFSError(
                f"allowed_batch_sizes {sizes} must end with max_batch_size, "
                f"{self.max_batch_size}, and be at least 1"
            )

    @property
    def largest(self) -> int:
        """Images in a batch at the most."""
        return self.max_execution_batch_size or self.max_batch_size

    @classmethod
    def of_file(cls, path: str | Path) -> Batching:
        """What a batching file says of this; names and padding of odd shapes are left out.

        Raises:
            TFSError: it cannot be read, is not in that format, or a value cannot be.
        """
        message = tfs_pb2.BatchingParameters()
        try:
            text_format.Parse(Path(path).read_text(), message)
        except OSError as error:
            raise TFSError(f"{path}: cannot be read: {error.strerror}") from error
        except (UnicodeDecodeError, text_format.ParseError) as error:
            raise TFSError(f"{path}: is no batching file: {error}") from error
        given = {
            name: getattr(message, name).value
            for name in cls.__dataclass_fields__
            if name != "allowed_batch_sizes" and message.HasField(name)
        }
        if not message.enable_large_batch_splitting.value:
            given.pop("max_execution_batch_size", None)
        elif not given.get("max_execution_batch_size"):
            given["max_execution_batch_size"] = given.get("max_batch_size", cls.max_batch_size)
        try:
            return cls(**given, allowed_batch_sizes=tuple(message.allowed_batch_sizes))
        except TFSError as error:
            raise TFSError(f"{path}: {error}") from error

    def to_text(self) -> str:
        """A batching file."""
        lines = [
            f"{name} {{ value: {getattr(self, name)} }}\n"
            for name in self.__dataclass_fields__
            if name != "allowed_batch_sizes"
            and not (name in _ZERO_IS_NONE and not getattr(self, name))
        ]
        if self.max_execution_batch_size:
            lines.append("enable_large_batch_splitting { value: true }\n")
        return "".join([*lines, *(f"allowed_batch_sizes: {n}\n" for n in self.allowed_batch_sizes)])

    def padded(self, images: int) -> int:
        """The size that a batch of so many is run with."""
        return next((size for size in self.allowed_batch_sizes if size >= images), images)
