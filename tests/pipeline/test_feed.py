from itertools import islice

import numpy as np
import pytest
import tensorflow as tf

from pipeline import config, dataset, feed, preprocessing

PLAIN = {"batch_size": 8, "shift": 0.0}
FORMS = {
    "memory": {"shift": 0.1, "erase": 0.5},
    "kept": {"shift": 0.1, "crop": 0.3},  # in memory too, as crops are cut out of them
    "stream": {"shift": 0.1, "crop": 0.3},
}


@pytest.fixture(autouse=True)
def memory(request, monkeypatch):
    """None for what is to come from files."""
    if "form" in request.fixturenames and request.getfixturevalue("form") == "stream":
        monkeypatch.setattr(feed, "MEMORY_BYTES", 1000)


def make(data, batch_size=8, **fields) -> feed.Feed:
    recipe = config.from_preset("demo", batch_size=batch_size, **fields)
    return feed.feed(data.train, recipe)


def take(source, count, step=0, size=28, context=None):
    return [
        (pixels.numpy(), labels.numpy())
        for pixels, labels in islice(source.batches(step, size, context), count)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_batches_are_full_endless_and_mixed(data, form):
    source = make(data, 32, **FORMS[form])
    assert source.steps_per_epoch == 1
    for pixels, labels in take(source, 4):
        assert pixels.shape == (32, 28, 28, 3)
        assert pixels.dtype == np.uint8
        assert set(labels) == {0, 1, 2}


@pytest.mark.parametrize("form", FORMS)
def test_no_autotuner_delays_the_end_of_batches(data, form):
    batches = make(data, **FORMS[form]).batches(0, 28)
    assert batches.options().autotune.enabled is False


@pytest.mark.parametrize("form", FORMS)
def test_a_later_start_sees_what_an_earlier_one_would(data, form):
    source = make(data, **FORMS[form])
    whole = take(source, 14)
    assert source.steps_per_epoch < 7  # so that epochs are crossed
    for step in (1, 5, 7, 11):
        for (pixels, labels), (expected, expected_labels) in zip(
            take(source, 3, step), whole[step : step + 3], strict=True
        ):
            np.testing.assert_array_equal(pixels, expected)
            np.testing.assert_array_equal(labels, expected_labels)


@pytest.mark.parametrize("form", FORMS)
def test_two_workers_share_what_one_sees(data, form):
    source = make(data, **FORMS[form])
    contexts = [tf.distribute.InputContext(2, worker, 2) for worker in range(2)]
    parts = [take(source, 6, context=context) for context in contexts]
    for (pixels, labels), *shares in zip(take(source, 6), *parts, strict=True):
        assert all(len(share) == 4 for share, _ in shares)
        for worker, (share, share_labels) in enumerate(shares):
            np.testing.assert_array_equal(share, pixels[worker::2])
            np.testing.assert_array_equal(share_labels, labels[worker::2])


@pytest.mark.parametrize("form", FORMS)
def test_an_epoch_shows_each_picture_at_most_once_and_the_next_another_order(data, form):
    count = data.train.size
    numbered = tf.data.Dataset.range(count).map(
        lambda i: (tf.fill((16, 16, 3), tf.cast(i, tf.uint8)), i)
    )
    split = dataset.Split(numbered, preprocessing.cut, count)
    recipe = config.from_preset("demo", **PLAIN, crop=FORMS[form].get("crop", 1.0))
    source = feed.feed(split, recipe)
    labels = np.stack([y for _, y in take(source, 3 * source.steps_per_epoch, size=16)])
    epochs = labels.reshape(3, -1)
    assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
    assert not (epochs[0] == epochs[1]).all()
    assert not (epochs[1] == epochs[2]).all()


def test_another_seed_is_another_order(data):
    orders = {tuple(take(make(data, seed=seed), 1)[0][1]) for seed in range(1, 6)}
    assert len(orders) > 1


def test_pictures_in_memory_can_be_asked_for_smaller(data):
    (pixels, _), *_ = take(make(data), 1, size=20)
    assert pixels.shape == (8, 20, 20, 3)


def test_a_set_smaller_than_a_batch_is_repeated(data):
    (pixels, _), *_ = take(make(data, 500), 1)
    assert len(pixels) == 500


def test_a_set_too_large_for_memory_is_streamed(data, monkeypatch):
    assert make(data).memory is not None
    monkeypatch.setattr(feed, "MEMORY_BYTES", 1000)
    assert make(data).memory is None


def test_crops_of_pictures_in_memory_are_those_of_their_files(data, monkeypatch):
    kept = make(data, crop=0.3)
    assert kept.split is not data.train
    monkeypatch.setattr(feed, "MEMORY_BYTES", 1000)
    streamed = make(data, crop=0.3)
    assert streamed.split is data.train
    for (pixels, labels), (expected, expected_labels) in zip(
        take(kept, 5, step=3), take(streamed, 5, step=3), strict=True
    ):
        assert (pixels != expected).mean() < 0.03  # colours at the edges, see preprocessing.decode
        np.testing.assert_array_equal(labels, expected_labels)


def split_of(pictures: list[np.ndarray]) -> tuple[dataset.Split, list[int]]:
    """Pictures by number, and the numbers of those that were read."""
    read = []

    def numbered():
        for number, picture in enumerate(pictures):
            read.append(number)
            yield picture, number

    picture = tf.TensorSpec((None, None, pictures[0].shape[-1]), tf.uint8)
    signature = (picture, tf.TensorSpec((), tf.int64))
    records = tf.data.Dataset.from_generator(numbered, output_signature=signature)
    return dataset.Split(records, preprocessing.cut, len(pictures)), read


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_many_sizes_are_read_once_and_kept_as_they_are(channels):
    random = np.random.default_rng(1)
    pictures = [random.integers(0, 256, (20 + i, 33 - i, channels), np.uint8) for i in range(12)]
    split, read = split_of(pictures)
    source = feed.feed(split, config.from_preset("demo", **PLAIN, crop=0.5))
    for image, label in source.split.images():
        np.testing.assert_array_equal(image, pictures[label])
    take(source, 5)
    assert read == list(range(12))


def test_a_large_set_is_known_by_its_first_pictures(monkeypatch):
    split, read = split_of([np.zeros((16, 16, 3), np.uint8)] * 10_000)
    monkeypatch.setattr(feed, "MEMORY_BYTES", 1_000_000)
    recipe = config.from_preset("demo", **PLAIN, crop=0.5)
    assert feed.feed(split, recipe).split is split
    assert feed.SAMPLED <= len(read) < 2 * feed.SAMPLED


def test_labels_stay_with_their_pictures(data):
    source = make(data, 16)
    means = {label: [] for label in range(3)}
    for pixels, labels in take(source, 5):
        for picture, label in zip(pixels, labels, strict=True):
            means[int(label)].append(picture.mean((0, 1)))
    brightest = {label: np.mean(colours, axis=0).argmax() for label, colours in means.items()}
    assert brightest == {0: 2, 1: 1, 2: 0}  # blue, green, red
