import itertools
import math
import os
import threading
import time
from collections.abc import Sequence
from concurrent import futures

import numpy as np
import pytest
import tensorflow as tf

from serving import batching
from serving.batching import Batcher, BatchingParameters
from serving.errors import Code, ConfigError, ServingError
from serving.metrics import Metrics
from tests.conftest import ROOT

X, Y = "x:0", "y:0"


def read(tmp_path, text: str) -> BatchingParameters:
    path = tmp_path / "batching.config"
    path.write_text(text, errors="surrogateescape")
    return batching.read(path)


def test_the_committed_file_is_read():
    parameters = batching.read(ROOT / "serving" / "config" / "batching.config")
    assert parameters.max_batch_size == 32
    assert parameters.execution_limit == 16
    assert [parameters.padded(rows) for rows in (1, 3, 15, 16)] == [1, 4, 16, 16]


def test_every_field_is_taken(tmp_path):
    text = """
        max_batch_size { value: 16 } batch_timeout_micros { value: 500 }
        max_enqueued_batches { value: 7 } num_batch_threads { value: 3 }
        allowed_batch_sizes: 8 allowed_batch_sizes: 16
        pad_variable_length_inputs: true
        thread_pool_name { value: "pool" }
        enable_large_batch_splitting { value: true }
        max_execution_batch_size { value: 8 }
    """
    assert read(tmp_path, text) == BatchingParameters(16, 500, 7, 3, (8, 16), True, "pool", True, 8)
    assert read(tmp_path, "") == BatchingParameters()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_batch_size { value: 0 }", "max_batch_size is 0"),
        ("num_batch_threads { value: 0 }", "num_batch_threads is 0"),
        ("max_batch_size { value: 9999999999 }", "max_batch_size is 9999999999"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros is -1"),
        ("\udcff", "batching.config"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: 4", "must be max_batch_size, 8"),
        ("max_batch_size { value: 4 } allowed_batch_sizes: 4 allowed_batch_sizes: 4", "must rise"),
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: 4 "
            "enable_large_batch_splitting { value: true } max_execution_batch_size { value: 4 }",
            "must be max_batch_size, 8",
        ),
        (
            "max_batch_size { value: 4 } max_execution_batch_size { value: 8 }",
            "must not be above max_batch_size, 4",
        ),
        ("max_batch_size: 8", "batching.config"),
        ("max_batches { value: 8 }", "max_batches"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        read(tmp_path, text)
    assert "batching.config" in str(caught.value)


class Doubler:
    """A session that doubles x, refuses negative numbers, and notes each batch it was given.

    Attributes:
        batches: the values of x of each run.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[np.ndarray] = []
        self._seconds = seconds

    def __call__(self, feeds: dict[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        time.sleep(self._seconds)
        self.batches.append(feeds[X])
        if (feeds[X] < 0).any():
            raise tf.errors.InvalidArgumentError(None, None, f"negative: {feeds[X].min():g}")
        return [2 * feeds[X] for _ in fetches]

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


def batcher_of(run: Doubler, *arguments, **parameters) -> Batcher:
    return Batcher(run, BatchingParameters(*arguments, **parameters), Metrics())


def double(batcher: Batcher, x: np.ndarray, deadline: float | None = None) -> np.ndarray:
    (y,) = batcher({X: x}, [Y], deadline)
    return y


def outcomes(batcher: Batcher, inputs: list[np.ndarray], deadlines=None) -> list:
    """What each of several calls at once returned or raised."""
    barrier = threading.Barrier(len(inputs))

    def call(x: np.ndarray, deadline: float | None) -> object:
        barrier.wait(10)
        try:
            return double(batcher, x, deadline)
        except (ServingError, tf.errors.OpError) as error:
            return error

    with futures.ThreadPoolExecutor(len(inputs)) as pool:
        none = [None] * len(inputs)
        return list(pool.map(call, inputs, deadlines or none, timeout=60))


def rows(count: int, value: float, *shape: int) -> np.ndarray:
    return np.full((count, *shape), value, np.float32)


def test_calls_at_once_are_merged_and_each_gets_its_rows():
    run = Doubler()
    batcher = batcher_of(run, 16, 200_000, num_batch_threads=1)
    inputs = [rows(1 + i % 3, i, 2) for i in range(8)]
    for x, y in zip(inputs, outcomes(batcher, inputs), strict=True):
        np.testing.assert_array_equal(y, 2 * x)
    assert sum(run.sizes) == sum(map(len, inputs))
    assert len(run.sizes) < len(inputs)
    assert max(run.sizes) <= 16


def test_numbers_of_requests_begin_anew(monkeypatch):
    monkeypatch.setattr(batching, "_serial", itertools.count(2**32 - 1))
    batcher = batcher_of(Doubler(), 16, 1000)
    for value in range(3):
        np.testing.assert_array_equal(double(batcher, rows(2, value)), rows(2, 2 * value))


def test_batches_are_padded_to_an_allowed_size():
    run = Doubler()
    output = double(batcher_of(run, 8, 1000, allowed_batch_sizes=(4, 8)), rows(3, 5, 1))
    assert output.shape == (3, 1)
    assert run.batches[0].tolist() == [[5]] * 4


def test_shapes_share_a_queue_and_do_not_fail_each_other():
    run = Doubler()
    batcher = batcher_of(run, 6, 2_000_000, num_batch_threads=1)
    started = time.monotonic()
    outputs = outcomes(batcher, [rows(1, i, 2 + i % 2) for i in range(6)])
    assert [y.shape[1] for y in outputs] == [2, 3, 2, 3, 2, 3]
    assert sorted(batch.shape for batch in run.batches) == [(3, 2), (3, 3)]
    assert time.monotonic() - started < 2  # six rows of two shapes filled one batch


def test_padding_brings_rows_to_one_shape_with_a_requests_first_value():
    run = Doubler()
    batcher = batcher_of(run, 2, 5_000_000, pad_variable_length_inputs=True)
    short, long = np.array([[7, 8]], np.float32), np.array([[1, 2, 3, 4]], np.float32)
    outputs = outcomes(batcher, [short, long])
    (batch,) = run.batches
    assert sorted(batch.tolist()) == [[1, 2, 3, 4], [7, 8, 7, 7]]
    assert [y.tolist() for y in outputs] == [[[14, 16, 14, 14]], [[2, 4, 6, 8]]]


def test_padding_brings_every_dimension_to_the_largest():
    run = Doubler()
    batcher = batcher_of(run, 2, 5_000_000, pad_variable_length_inputs=True)
    outputs = outcomes(batcher, [rows(1, 1, 1, 3), rows(1, 2, 2, 1)])
    assert [y.shape for y in outputs] == [(1, 2, 3)] * 2
    assert [y.tolist() for y in outputs] == [rows(1, 2, 2, 3).tolist(), rows(1, 4, 2, 3).tolist()]


def test_ranks_are_not_brought_to_one_by_padding():
    run = Doubler()
    batcher = batcher_of(run, 2, 5_000_000, pad_variable_length_inputs=True)
    outputs = outcomes(batcher, [rows(1, 1, 2), rows(1, 2, 2, 2)])
    assert [y.shape for y in outputs] == [(1, 2), (1, 2, 2)]
    assert len(run.batches) == 2


def test_only_the_culprit_of_a_merged_batch_fails():
    run = Doubler()
    batcher = batcher_of(run, 4, 5_000_000)
    good, bad = [rows(1, i, 1) for i in (1, 2, 3)], rows(1, -4, 1)
    *outputs, error = outcomes(batcher, [*good, bad])
    assert [y.tolist() for y in outputs] == [[[2]], [[4]], [[6]]]
    assert isinstance(error, tf.errors.InvalidArgumentError)
    assert "negative: -4" in error.message
    assert run.sizes == [4, 1, 1, 1, 1]  # together, then each by itself


def test_a_models_error_reaches_its_caller_with_its_code():
    batcher = batcher_of(Doubler(), 4)
    assert double(batcher, rows(2, 1)).tolist() == [2, 2]
    with pytest.raises(tf.errors.InvalidArgumentError, match="negative"):
        double(batcher, rows(2, -1))


def test_outputs_without_a_row_for_each_are_refused():
    for output in (np.float32(1), np.zeros(3, np.float32)):
        batcher = Batcher(lambda *_, y=output: [y], BatchingParameters(4), Metrics())
        with pytest.raises(ServingError, match=r"0th dimension|0 dimensions") as caught:
            double(batcher, rows(2, 1))
        assert caught.value.code is Code.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({X: np.float32(1)}, "at least one dimension"),
        ({X: rows(2, 1), Y: rows(3, 1)}, "equal 0th-dimension size"),
    ],
)
def test_what_has_no_rows_in_common_is_refused(feeds, words):
    with pytest.raises(ServingError, match=words) as caught:
        batcher_of(Doubler(), 4)(feeds, [Y])
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_a_request_larger_than_a_batch_is_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="larger than maximum"):
        double(batcher_of(Doubler(), 4), rows(5, 1))


@pytest.mark.parametrize("sizes", [(), (2, 4, 16)])
def test_a_large_request_is_split_by_max_execution_batch_size(sizes):
    run = Doubler()
    batcher = batcher_of(
        run, 16, allowed_batch_sizes=sizes,
        enable_large_batch_splitting=True, max_execution_batch_size=4,
    )  # fmt: skip
    x = np.arange(10, dtype=np.float32)
    np.testing.assert_array_equal(double(batcher, x), 2 * x)
    assert sorted(run.sizes) == [2, 4, 4]


def test_what_was_split_is_padded_to_an_allowed_size_too():
    run = Doubler()
    batcher = batcher_of(
        run, 16, allowed_batch_sizes=(8, 16),
        enable_large_batch_splitting=True, max_execution_batch_size=4,
    )  # fmt: skip
    x = np.arange(6, dtype=np.float32)
    np.testing.assert_array_equal(double(batcher, x), 2 * x)
    assert run.sizes == [8, 8]


def test_a_split_request_fails_as_a_whole():
    batcher = batcher_of(
        Doubler(), 16, enable_large_batch_splitting=True, max_execution_batch_size=4
    )
    x = np.arange(10, dtype=np.float32)
    x[9] = -9
    with pytest.raises(tf.errors.InvalidArgumentError, match="negative: -9"):
        double(batcher, x)


def test_requests_of_other_fetches_have_another_queue():
    run = Doubler()
    batcher = batcher_of(run, 2, 200_000)
    with futures.ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(batcher, {X: rows(1, 1)}, fetches) for fetches in ([Y], [Y, "z:0"])]
        assert sorted(len(call.result(60)) for call in calls) == [1, 2]
    assert run.sizes == [1, 1]


def test_the_order_of_fetches_is_the_callers_and_one_queue_is_for_all_orders():
    def run(feeds: dict[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        factors = {Y: 2, "z:0": 3}
        return [factors[name] * feeds[X] for name in fetches]

    batcher = Batcher(run, BatchingParameters(8), Metrics())
    wanted = {("z:0", Y, "z:0"): [3, 2, 3], (Y, "z:0"): [2, 3]}
    for fetches, factors in wanted.items():
        outputs = batcher({X: rows(2, 1)}, list(fetches))
        assert [y.tolist() for y in outputs] == [[factor] * 2 for factor in factors]
    assert len(batcher._queues) == 1


def test_combinations_of_fetches_beyond_a_limit_run_alone(monkeypatch):
    monkeypatch.setattr(batching, "MAX_QUEUES", 1)
    run = Doubler()
    batcher = batcher_of(run, 2)
    double(batcher, rows(1, 1))
    assert [len(y) for y in batcher({X: rows(3, 1)}, [Y, "z:0"])] == [3, 3]
    with pytest.raises(tf.errors.InvalidArgumentError, match="larger than maximum"):
        double(batcher, rows(3, 1))


def test_a_deadline_that_passed_in_the_queue_is_not_computed():
    run = Doubler()
    batcher = batcher_of(run, 8, 500_000, num_batch_threads=1)
    soon = time.monotonic() + 0.1
    late, *others = outcomes(batcher, [rows(1, i, 1) for i in (1, 2, 3)], [soon, None, soon + 60])
    assert late.code is Code.RESOURCE_EXHAUSTED
    assert "timeout exceeded while waiting in batching queue" in late.message
    assert [y.tolist() for y in others] == [[[4]], [[6]]]
    assert [sorted(batch.ravel().tolist()) for batch in run.batches] == [[2, 3]]


def test_a_full_queue_refuses_at_once():
    batcher = batcher_of(Doubler(seconds=0.3), 1, 0, max_enqueued_batches=1, num_batch_threads=1)
    double(batcher, rows(1, 1))
    answers = outcomes(batcher, [rows(1, 1)] * 6)
    refused = [x for x in answers if isinstance(x, tf.errors.UnavailableError)]
    assert 0 < len(refused) < 6


def test_a_version_is_batched_by_its_own_file_or_not_at_all(tmp_path):
    common = BatchingParameters(64, num_batch_threads=3, thread_pool_name="common")
    assert batching.for_model(tmp_path, common) is None
    text = "max_batch_size { value: 5 } num_batch_threads { value: 9 }"
    (tmp_path / "batching_params.pbtxt").write_text(text + 'thread_pool_name { value: "own" }')
    expected = BatchingParameters(5, num_batch_threads=3, thread_pool_name="common")
    assert batching.for_model(tmp_path, common) == expected
    (tmp_path / "batching_params.pbtxt").write_text("max_batch_size { value: 0 }")
    with pytest.raises(ConfigError, match=r"batching_params\.pbtxt: max_batch_size is 0"):
        batching.for_model(tmp_path, common)


def test_no_rows_are_run_without_waiting():
    run = Doubler()
    started = time.monotonic()
    assert double(batcher_of(run, 8, 5_000_000), rows(0, 1, 3)).shape == (0, 3)
    assert time.monotonic() - started < 4


@pytest.mark.parametrize(
    ("text", "most"),
    [("max 100000\n", math.inf), ("150000 100000\n", 2), ("50000 100000\n", 1), (None, math.inf)],
)
def test_threads_are_no_more_than_the_containers_limit(tmp_path, monkeypatch, text, most):
    monkeypatch.setattr(batching, "CPU_MAX", tmp_path / "cpu.max")
    if text:
        (tmp_path / "cpu.max").write_text(text)
    assert BatchingParameters().threads == min(most, len(os.sched_getaffinity(0)))
