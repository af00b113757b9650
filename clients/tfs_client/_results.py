"""What calls return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Label:
    """A class and its probability, 0 to 1."""

    name: str
    score: float


@dataclass(frozen=True)
class Classification:
    """The most probable classes of one image, best first, and who says so.

    Attributes:
        labels: of the classes; five at the most.
        model: the model that answered.
        version: its version.
        position: the image's place in the call, from 0.
    """

    labels: tuple[Label, ...]
    model: str
    version: int
    position: int = field(default=0, compare=False)

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.labels[0].name

    @property
    def score(self) -> float:
        """Its probability."""
        return self.labels[0].score


@dataclass(frozen=True, eq=False)
class Prediction:
    """A signature's outputs by name, and who answered: `prediction["y"]`.

    The arrays are read-only views of the answer; `.copy()` one to change it.
    """

    outputs: dict[str, np.ndarray[Any, np.dtype[Any]]]
    model: str
    version: int

    def __getitem__(self, name: str) -> np.ndarray[Any, np.dtype[Any]]:
        return self.outputs[name]


@dataclass(frozen=True)
class Regression:
    """A value for each example, and who says so."""

    values: tuple[float, ...]
    model: str
    version: int


@dataclass(frozen=True)
class Metadata:
    """A model's signatures by name, and whose they are."""

    signatures: dict[str, Signature]
    model: str
    version: int


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
