from collections import Counter

import numpy as np
import tensorflow as tf
from tfs_client.bench import closed_loop, report
from tfs_client.bench.closed_loop import Result

from tests.conftest import COLOURS


def solid(colour: tuple[int, int, int]) -> bytes:
    return tf.io.encode_png(np.full((28, 28, 3), colour, np.uint8)).numpy()


def test_answers_are_checked_and_calls_counted(client):
    images = [solid(colour) for colour in COLOURS.values()]
    right = [answer.label for answer in client.classify(images)]
    result = closed_loop.measure(client, images, right, callers=3, seconds=1)
    assert result.wrong == 0
    assert not result.errors
    assert len(result.latencies) > 3
    assert 0 < min(result.latencies) < max(result.latencies) < 1
    wrong = closed_loop.measure(client, images, ["pink"] * 3, callers=1, seconds=0.5)
    assert wrong.wrong > 0
    assert not wrong.latencies


def test_failed_calls_are_counted_not_timed(client):
    result = closed_loop.measure(client, [b"junk"], ["red"], callers=2, seconds=0.3)
    assert not result.latencies
    assert 1 < result.errors.total() < 20
    assert "image 0" in next(iter(result.errors))


def test_percentiles_are_withheld_where_samples_are_too_few():
    few = report.row(Result(1, 1.0, [0.010] * 49)).split()
    assert few == ["1", "49.0", "-", "-", "-", "0", "0"]
    some = report.row(Result(2, 2.0, [0.010] * 100)).split()
    assert some == ["2", "50.0", "10.0", "10.0", "-", "0", "0"]
    many = report.row(
        Result(2, 1.0, [0.001] * 990 + [0.1] * 10, wrong=3, errors=Counter(["no"]))
    ).split()
    assert many[2:] == ["1.0", "1.0", "2.0", "3", "1", "no"]
