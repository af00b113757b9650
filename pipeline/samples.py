"""Test images as files, to try a server with.

    python -m pipeline data

leaves the first hundred of the test split in `data/samples/<dataset>/`, as PNG, named by number and
class.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from pipeline import files
from pipeline.dataset import Dataset, untuned

COUNT = 100


def write(data: Dataset, data_dir: Path) -> Path:
    """Write the first images of the test split; returns their folder."""

    def save(partial: Path) -> None:
        partial.mkdir()
        for position, (image, label) in enumerate(encoded(data, COUNT)):
            name = f"{position:03}-{_slug(data.class_names[label])}.png"
            (partial / name).write_bytes(image)

    target = folder(data.name, data_dir)
    files.replace_folder(target, save)
    return target


def folder(dataset: str, data_dir: Path) -> Path:
    """Where a data set's samples are."""
    return data_dir / "samples" / _slug(Path(dataset).name)


def encoded(data: Dataset, count: int) -> Iterator[tuple[bytes, int]]:
    """The first images of the test split as (PNG bytes, label)."""
    images = (
        data.test.images().take(count).map(lambda image, label: (tf.io.encode_png(image), label))
    )
    for image, label in untuned(images).as_numpy_iterator():
        yield image, int(label)


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name).strip("-").lower() or "images"
