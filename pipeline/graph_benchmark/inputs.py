"""What every runtime is measured on: the same noise, in batches of the same sizes."""

from collections.abc import Callable

import numpy as np

from pipeline.training_benchmark.worker import Data, Step

BATCH_SIZES = (1, 8, 32)
DECODED = (1, 32)  # photos at a time
IMAGE_SIZE = 224
CLASSES = 1000
CALIBRATION_BATCHES = 4  # of 32


def rows(batch_size: int) -> str:
    """The name of a batch size in tables."""
    return f"batch {batch_size}"


def photos(count: int) -> str:
    """The name of so many photos in tables."""
    return f"{count} photo{'s' if count > 1 else ''}"


def pictures(count: int, seed: int = 1) -> np.ndarray:
    """Noise, uint8 [N,S,S,3]."""
    shape = (count, IMAGE_SIZE, IMAGE_SIZE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def calibration() -> list[np.ndarray]:
    """Batches to calibrate int8 on."""
    return [pictures(32, seed) for seed in range(2, 2 + CALIBRATION_BATCHES)]


def data(run: Callable[[np.ndarray], object]) -> Data:
    """A runtime's whole forward pass, as what a worker measures: a name for each batch size."""

    def opened(batch_size: int) -> Callable[[], Step]:
        batch = pictures(batch_size)

        def step() -> int:
            run(batch)
            return batch_size

        return lambda: step

    return {rows(batch_size): opened(batch_size) for batch_size in BATCH_SIZES}
