import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pipeline import dataset
from pipeline.errors import PipelineError
from tests.conftest import COLOURS, IMAGES_PER_CLASS, colour_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of three images each, to be spoiled."""
    for name in ("green", "red"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(3):
            image = tf.io.encode_jpeg(colour_image(name, i)).numpy()
            (tmp_path / "set" / name / f"{i}.jpg").write_bytes(image)
    return tmp_path / "set"


def test_a_folder_is_split_by_class_and_read_with_its_labels(data):
    assert data.class_names == tuple(sorted(COLOURS))
    assert data.train.size + data.test.size == 3 * IMAGES_PER_CLASS
    for split in (data.train, data.test):
        elements = list(split.images().as_numpy_iterator())
        assert len(elements) == split.size
        for image, label in elements:
            nearest = np.abs(list(COLOURS.values()) - image.mean((0, 1))).sum(1).argmin()
            assert list(COLOURS)[nearest] == data.class_names[label]


def test_the_split_is_the_same_every_time(image_folder, data):
    again = dataset.load(str(image_folder))
    for image, expected in zip(again.test.images(), data.test.images(), strict=True):
        assert (image[0].numpy() == expected[0].numpy()).all()


def test_about_a_tenth_is_for_tests_and_stays_so_as_a_class_grows():
    paths = [Path(f"roses/{number}.jpg") for number in range(1000)]
    grown = dataset._held_out(paths)
    assert 75 < len(grown) < 125
    for count in (2, 3, 10, 100):
        few = paths[:count]
        held_out = dataset._held_out(few)
        assert 0 < len(held_out) < count
        assert not (set(few) - held_out) & grown or len(held_out) == count - 1


def test_what_is_held_out_is_apart_and_the_same_every_time(data):
    rest, apart = dataset.hold_out(data.train, 0.2)
    assert apart.size == math.ceil(data.train.size / 5)
    assert rest.size + apart.size == data.train.size
    paths = [[path for path, _ in split.records.as_numpy_iterator()] for split in (rest, apart)]
    assert [len(each) for each in paths] == [rest.size, apart.size]
    everything = {path for path, _ in data.train.records.as_numpy_iterator()}
    assert set(paths[0]) | set(paths[1]) == everything
    again = dataset.hold_out(data.train, 0.2)[1].records.as_numpy_iterator()
    assert [path for path, _ in again] == paths[1]


@pytest.mark.parametrize("share", [0.1, 0.15, 0.3, 0.35, 0.4, 0.5])
def test_as_much_is_held_out_as_asked(data, share):
    for images in (1, 2, 4, 7, 30):
        some = dataclasses.replace(data.train, records=data.train.records.take(images), size=images)
        parts = dataset.hold_out(some, share)
        sizes = [part.size for part in parts]
        assert sizes[1] == math.ceil(round(images * share, 9))
        assert sizes == [len(list(part.records)) for part in parts]
        assert sum(sizes) == images


def test_nothing_held_out_is_everything(data):
    rest, apart = dataset.hold_out(data.train, 0.0)
    assert rest is data.train
    assert (apart.size, len(list(apart.records))) == (0, 0)


def test_batches_keep_the_order(data):
    labels = [int(label) for _, label in data.test.records]
    batches = dataset.batches(data.test, 16, batch_size=4)
    assert np.concatenate([y.numpy() for _, y in batches]).tolist() == labels


def test_no_autotuner_delays_the_end_of_batches(data):
    assert dataset.batches(data.test, 28).options().autotune.enabled is False


def test_an_unreadable_image_is_named(folder):
    (folder / "red" / "1.jpg").write_bytes(b"not an image")
    with pytest.raises(PipelineError, match=r"red/1\.jpg cannot be read"):
        dataset.load(str(folder))


def test_a_truncated_image_is_named(folder):
    path = folder / "green" / "2.jpg"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(PipelineError, match=r"green/2\.jpg cannot be read"):
        dataset.load(str(folder))


@pytest.mark.parametrize(("left", "words"), [(0, "no images"), (1, "1 image")])
def test_a_class_with_too_few_images_is_named(folder, left, words):
    for path in sorted((folder / "green").iterdir())[left:]:
        path.unlink()
    with pytest.raises(PipelineError, match=f"class 'green' .* {words}"):
        dataset.load(str(folder))


def test_one_class_only_is_refused(folder):
    (folder / "green").rename(folder / ".hidden")
    with pytest.raises(PipelineError, match="only class 'red'"):
        dataset.load(str(folder))


def test_a_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(PipelineError, match="no sub-folders"):
        dataset.load(str(tmp_path))


def test_what_is_no_file_is_not_waited_for(folder):
    os.mkfifo(folder / "red" / "pipe.png")
    (folder / "green" / "folder.jpg").mkdir()
    with pytest.raises(
        PipelineError, match=r"(pipe|folder)\.\w+ cannot be read \(it is not a file\)"
    ):
        dataset.load(str(folder))


def test_a_name_that_is_not_utf8_is_named(folder):
    image = (folder / "red" / "0.jpg").read_bytes()
    (folder / "red" / "\udcff.jpg").write_bytes(image)
    with pytest.raises(PipelineError, match=r"udcff\.jpg cannot be read \(its name is not UTF-8\)"):
        dataset.load(str(folder))


def test_files_that_are_no_images_are_counted(folder, capsys):
    (folder / "red" / "notes.txt").write_text("…")
    assert dataset.load(str(folder)).train.size == 4
    assert capsys.readouterr().out == "class 'red': 1 files are no images\n"


def test_no_name_is_not_the_current_folder(tmp_path):
    with pytest.raises(PipelineError, match="no name"):
        dataset.load("", tmp_path)


@pytest.mark.parametrize(
    "name", ["nope_not_there", "hallo welt", "cifar1O", "mnist:9.9.9", "huggingface:mnist"]
)
def test_an_unknown_data_set_is_named(name, tmp_path):
    with pytest.raises(PipelineError, match=f"unknown dataset '{name}'"):
        dataset.load(name, tmp_path)


@pytest.mark.parametrize("name", ["/no/such/folder", "./no/such", "no/such/folder"])
def test_a_missing_folder_is_named(name, tmp_path):
    with pytest.raises(PipelineError, match=f"folder {name} does not exist"):
        dataset.load(name, tmp_path)


def test_a_data_set_without_image_and_label_is_refused(tmp_path):
    with pytest.raises(PipelineError, match="imdb_reviews is not for image classification"):
        dataset.load("imdb_reviews", tmp_path)


def test_a_mirror_without_a_scheme_is_refused(tmp_path):
    with pytest.raises(PipelineError, match="mirror 'nonsense' is no address"):
        dataset.load("fashion_mnist", tmp_path, "nonsense")


def test_a_mirror_that_is_not_there_is_named(tmp_path):
    mirror = (tmp_path / "nowhere").as_uri()
    with pytest.raises(PipelineError, match=f"could not be prepared from {mirror}/"):
        dataset.load("fashion_mnist", tmp_path, mirror)
