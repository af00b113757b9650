"""What calls return."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Label:
    """A class and its probability, 0 to 1."""

    name: str
    score: float


@dataclass(frozen=True)
class Classification:
    """The most probable classes of one image, best first, and who says so."""

    labels: tuple[Label, ...]
    model: str
    version: int

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.labels[0].name

    @property
    def score(self) -> float:
        """Its probability."""
        return self.labels[0].score


@dataclass(frozen=True)
class VersionStatus:
    """One version of a model: START, LOADING, AVAILABLE, UNLOADING or END, and what went wrong."""

    version: int
    state: str
    error: str


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a signature: numpy's name of its dtype, and its shape.

    -1 stands for any size; the shape is None where even the rank is open.
    """

    dtype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Signature:
    """One of a model's signatures."""

    method: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
