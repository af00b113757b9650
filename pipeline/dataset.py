"""Labelled images: a TFDS data set or a folder of images -> two splits as tf.data.

    python -m pipeline data --dataset fashion_mnist [--mirror file:///folder/of/its/files/]
    python -m pipeline data --dataset path/to/folder      with folder/<class name>/*.jpg

prepares or checks the data and prints what it holds. Fashion-MNIST takes about 15 seconds the first
time; a folder costs one decoding of each image, a few hundred photos a second per core.
"""

import bisect
import concurrent.futures
import dataclasses
import hashlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import absl.logging
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from pipeline import mirror as mirrors
from pipeline import preprocessing
from pipeline.errors import PipelineError, reason
from pipeline.preprocessing import Window

DEFAULT_DATA_DIR = Path("data")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp"}
# What TensorFlow says of files that went, changed or were cut short after they had been listed.
UNREADABLE = (
    tf.errors.NotFoundError,
    tf.errors.InvalidArgumentError,
    tf.errors.PermissionDeniedError,
    tf.errors.FailedPreconditionError,
    tf.errors.DataLossError,
    tf.errors.OutOfRangeError,
)
TEST_SHARE = 0.1  # of a folder's images; TFDS data sets bring their own test split


@dataclass(frozen=True)
class Split:
    """Labelled images in a fixed order.

    Attributes:
        records: unbatched elements (record, int64 label []); a record costs little to read or to
            skip.
        open: a record as a picture, or as the part of it in a window: uint8 [H,W,C].
        size: number of elements.
    """

    records: tf.data.Dataset
    open: Callable[[tf.Tensor, Window | None], tf.Tensor]
    size: int

    def images(self) -> tf.data.Dataset:
        """Unbatched elements (uint8 image [H,W,C], int64 label [])."""
        return self.records.map(
            lambda record, label: (self.open(record, None), label),
            num_parallel_calls=tf.data.AUTOTUNE,
        )


@dataclass(frozen=True)
class Dataset:
    """Labelled images in two splits.

    Attributes:
        name: as the user gave it.
        class_names: by label.
        train: what a network learns from.
        test: what it is measured on in the end.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split


def load(name: str, data_dir: Path = DEFAULT_DATA_DIR, mirror: str | None = None) -> Dataset:
    """Prepare and open a data set.

    Args:
        name: a folder with a sub-folder per class, or else a TFDS name.
        data_dir: where TFDS keeps prepared data sets.
        mirror: base address (`https://…/` or `file:///…/`) to take a TFDS data set's files from.

    Raises:
        PipelineError: unknown data set; files not to be had; for a folder: one class only, a class
            without images, an image that cannot be read.
    """
    if not name:
        raise PipelineError("the dataset has no name: give a TFDS name or a folder of images")
    if Path(name).is_dir():
        return _from_folder(Path(name))
    if "/" in name and not _is_tfds_name(name):
        raise PipelineError(f"dataset folder {name} does not exist")
    return _from_tfds(name, data_dir, mirror)


def hold_out(split: Split, share: float) -> tuple[Split, Split]:
    """A share of a split, taken evenly, kept apart: (the rest, what is kept apart)."""
    if not share:
        return split, dataclasses.replace(split, records=split.records.take(0), size=0)
    taken, of = Fraction(share).limit_denominator(10**6).as_integer_ratio()
    numbered = split.records.enumerate()
    kept, rest = (
        numbered.filter(lambda i, _, apart=apart: (-i * taken % of < taken) == apart).map(
            lambda _, x: x
        )
        for apart in (True, False)
    )
    size = -(-split.size * taken // of)
    return (
        dataclasses.replace(split, records=rest, size=split.size - size),
        dataclasses.replace(split, records=kept, size=size),
    )


def batches(split: Split, image_size: int, batch_size: int = 128) -> tf.data.Dataset:
    """A split once, in its order: (uint8 pixels [B,S,S,3], int64 labels [B])."""
    images = split.images().map(
        lambda image, label: (preprocessing.to_pixels(image, image_size), label),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    return untuned(images.batch(batch_size).prefetch(tf.data.AUTOTUNE))


def untuned(data: tf.data.Dataset) -> tf.data.Dataset:
    """The same without tf.data's autotuner, whose iterators may take up to a minute to be deleted.

    Its thread can miss the news that its iterator goes, and then sleeps on to its next turn (a
    race in Model::OptimizeLoop; docs/training.md has how often it was seen). Without it AUTOTUNE
    means a call a core, 16 at most.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)


# --- TFDS


def _is_tfds_name(name: str) -> bool:
    """`name`, `name/config`, `name:version`; paths start with a dot, a slash or a tilde."""
    return re.fullmatch(r"\w+(/[\w.-]+)?(:[\w.*]+)?", name) is not None


def _from_tfds(name: str, data_dir: Path, mirror: str | None) -> Dataset:
    import tensorflow_datasets as tfds  # two seconds that a folder of images need not pay

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    absl.logging.set_verbosity(absl.logging.ERROR)
    # Data sets' statistics in Google's bucket are not needed, and not reachable everywhere.
    tfds.core.utils.gcs_utils._is_gcs_disabled = True
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # TFDS's own, and whatever its parsing and its back-ends raise
        raise PipelineError(
            f"unknown dataset {name!r} ({_first_line(error)}): give a TFDS name (fashion_mnist, "
            "cifar10, …) or an existing folder with a sub-folder of images per class"
        ) from error
    _check_kind(builder.info, name)
    if not builder.is_prepared():
        _prepare(builder, name, data_dir, mirror)
    splits = builder.info.splits
    test = "test" if "test" in splits else "validation"
    if test not in splits or "train" not in splits:
        raise PipelineError(
            f"dataset {name} lacks a train or a test split: it has {list(splits)}; write its "
            "images into a folder with a sub-folder per class"
        )
    return Dataset(
        name=name,
        class_names=tuple(builder.info.features["label"].names),
        train=_tfds_split(builder, "train"),
        test=_tfds_split(builder, test),
    )


def _tfds_split(builder, name: str) -> Split:
    import tensorflow_datasets as tfds

    encoded = {"image": tfds.decode.SkipDecoding()}
    feature = builder.info.features["image"]

    def open_record(record: tf.Tensor, window: Window | None) -> tf.Tensor:
        if (feature.shape[-1], feature.np_dtype) == (3, np.uint8):
            return preprocessing.decode(record, window)
        return preprocessing.cut(feature.decode_example(record), window)

    return Split(
        builder.as_dataset(name, as_supervised=True, decoders=encoded),
        open_record,
        builder.info.splits[name].num_examples,
    )


def _check_kind(info, name: str) -> None:
    if info.supervised_keys != ("image", "label"):
        raise PipelineError(
            f"dataset {name} is not for image classification: "
            f"it offers {info.supervised_keys}, not ('image', 'label')"
        )


def _prepare(builder, name: str, data_dir: Path, mirror: str | None) -> None:
    if mirror and "://" not in mirror:
        raise PipelineError(f"mirror {mirror!r} is no address: give one like file:///folder/")
    upstream = getattr(builder, "URL", None)
    if upstream is None and mirror:
        raise PipelineError(f"TFDS cannot read dataset {name} from a mirror: leave out --mirror")
    if upstream is not None:
        address = mirror or mirrors.find(builder.name, upstream, data_dir / "packages")
        builder.URL = address.rstrip("/") + "/"
    try:
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises whatever its download, file and parse code raises
        source = f" from {builder.URL}" if upstream is not None else ""
        raise PipelineError(
            f"dataset {name} could not be prepared{source}: {_first_line(error)}: mend that, or "
            f"name {'another' if mirror else 'a'} mirror of its files with --mirror"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


# --- folders


def _from_folder(folder: Path) -> Dataset:
    classes = _list_classes(folder)
    _check_images([path for paths in classes.values() for path in paths])
    train: list[tuple[str, int]] = []
    test: list[tuple[str, int]] = []
    for label, paths in enumerate(classes.values()):
        held_out = _held_out(paths)
        for path in paths:
            (test if path in held_out else train).append((str(path), label))
    return Dataset(
        name=str(folder),
        class_names=tuple(classes),
        train=_listed(train),
        test=_listed(test),
    )


def _list_classes(folder: Path) -> dict[str, list[Path]]:
    """Class name -> its images, both sorted."""
    subfolders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(subfolders) < 2:
        found = f"only class {subfolders[0].name!r}" if subfolders else "no sub-folders"
        raise PipelineError(
            f"dataset folder {folder} has {found}: make a sub-folder of images for each of at "
            "least two classes"
        )
    classes = {}
    for subfolder in subfolders:
        files = sorted(path for path in subfolder.iterdir() if not path.name.startswith("."))
        images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        if len(images) < len(files):
            print(f"class {subfolder.name!r}: {len(files) - len(images)} files are no images")
        if len(images) < 2:
            raise PipelineError(
                f"class {subfolder.name!r} in {folder} has {len(images) or 'no'} "
                f"image{'s' if not images else ''} ({' '.join(sorted(IMAGE_SUFFIXES))}): "
                "put at least two there, one to train and one to test with, or remove the folder"
            )
        classes[subfolder.name] = images
    return classes


def _check_images(paths: list[Path]) -> None:
    """Decode every image once, so that a bad one is named before training and not hours into it."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        checks = pool.map(_decoding_error, paths)
        for path, error in tqdm(
            zip(paths, checks, strict=True), "checking", len(paths), unit=" images", disable=None
        ):
            if error:
                pool.shutdown(cancel_futures=True)
                name = str(path).encode(errors="backslashreplace").decode()
                raise PipelineError(f"image {name} cannot be read ({error}): mend or remove it")


def _decoding_error(path: Path) -> str | None:
    if not path.is_file():
        return "it is not a file"
    try:
        preprocessing.decode(tf.io.read_file(str(path)))
    except ValueError:  # TensorFlow's word for a path that it cannot encode
        return "its name is not UTF-8"
    except tf.errors.OpError as error:
        return reason(error)
    return None


def _held_out(paths: list[Path]) -> set[Path]:
    """About a tenth of a class, at least one image and never all.

    Each is chosen by its own name: where the folder grows, none that was trained on becomes a test.
    """
    by_hash, limit = sorted(paths, key=_hash), int(TEST_SHARE * 2**256).to_bytes(32, "big")
    chosen = bisect.bisect_left(by_hash, limit, key=_hash)
    return set(by_hash[: min(max(1, chosen), len(paths) - 1)])


def _hash(path: Path) -> bytes:
    """By class and name, so that a folder trains the same wherever it lies."""
    return hashlib.sha256("/".join(path.parts[-2:]).encode()).digest()


def _listed(files: list[tuple[str, int]]) -> Split:
    # Files are read class by class otherwise, which a shuffle buffer smaller than the set shows.
    files = sorted(files, key=lambda file: _hash(Path(file[0])))
    paths, labels = zip(*files, strict=True)
    records = tf.data.Dataset.from_tensor_slices((list(paths), tf.constant(labels, tf.int64)))

    def open_file(path: tf.Tensor, window: Window | None) -> tf.Tensor:
        return preprocessing.decode(tf.io.read_file(path), window)

    return Split(records, open_file, len(files))
