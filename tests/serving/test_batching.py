import threading
import time
from concurrent import futures

import pytest
import tensorflow as tf

from serving import batching
from serving.batching import Batcher, BatchingParameters
from serving.errors import Code, ConfigError, ServingError
from tests.conftest import ROOT


def read(tmp_path, text: str) -> BatchingParameters:
    path = tmp_path / "batching.config"
    path.write_text(text, errors="surrogateescape")
    return batching.read(path)


def test_the_committed_file_is_read():
    parameters = batching.read(ROOT / "serving" / "config" / "batching.config")
    assert parameters.max_batch_size == 32
    assert parameters.allowed_batch_sizes[-1] == 32


def test_every_field_is_taken(tmp_path):
    text = """
        max_batch_size { value: 8 } batch_timeout_micros { value: 500 }
        max_enqueued_batches { value: 7 } num_batch_threads { value: 3 }
        allowed_batch_sizes: 4 allowed_batch_sizes: 8
        enable_large_batch_splitting { value: true }
    """
    assert read(tmp_path, text) == BatchingParameters(8, 500, 7, 3, (4, 8), True)
    assert read(tmp_path, "") == BatchingParameters()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_batch_size { value: 0 }", "max_batch_size is 0"),
        ("max_batch_size { value: 9999999999 }", "max_batch_size is 9999999999"),
        ("\udcff", "batching.config"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: 4", "must be max_batch_size, 8"),
        ("max_batch_size { value: 4 } allowed_batch_sizes: 4 allowed_batch_sizes: 4", "must rise"),
        ("max_batch_size: 8", "batching.config"),
        ("max_batches { value: 8 }", "max_batches"),
        ("pad_variable_length_inputs: true", "pad_variable_length_inputs is not supported"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, text)


class Recorder:
    """A function that notes the size of each batch it runs on, and takes its time."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.sizes: list[int] = []
        self._seconds = seconds

        @tf.function(input_signature=[tf.TensorSpec(None, tf.float32)])
        def double(x):
            with tf.control_dependencies([tf.py_function(self._note, [tf.shape(x)[0]], [])]):
                return [2.0 * x]

        self.function = double.get_concrete_function()

    def _note(self, size: tf.Tensor) -> None:
        time.sleep(self._seconds)
        self.sizes.append(int(size))


def call_at_once(batcher: Batcher, inputs: list[tf.Tensor]) -> list[tf.Tensor]:
    barrier = threading.Barrier(len(inputs))

    def call(x: tf.Tensor) -> tf.Tensor:
        barrier.wait(10)
        return batcher([x])[0]

    with futures.ThreadPoolExecutor(len(inputs)) as pool:
        return list(pool.map(call, inputs, timeout=60))


def test_calls_at_once_are_merged_and_each_gets_its_rows():
    recorder = Recorder()
    batcher = Batcher(recorder.function, BatchingParameters(16, 200_000, num_batch_threads=1))
    inputs = [tf.fill([1 + i % 3, 2], float(i)) for i in range(8)]
    outputs = call_at_once(batcher, inputs)
    for x, y in zip(inputs, outputs, strict=True):
        assert (y.numpy() == 2 * x.numpy()).all()
    assert sum(recorder.sizes) == sum(len(x) for x in inputs)
    assert len(recorder.sizes) < len(inputs)
    assert max(recorder.sizes) <= 16


def test_batches_are_padded_to_an_allowed_size():
    recorder = Recorder()
    parameters = BatchingParameters(8, 1000, allowed_batch_sizes=(4, 8))
    output = Batcher(recorder.function, parameters)([tf.ones([3, 1])])
    assert output[0].shape == (3, 1)
    assert recorder.sizes == [4]


def test_shapes_are_not_mixed_and_do_not_fail_each_other():
    recorder = Recorder()
    batcher = Batcher(recorder.function, BatchingParameters(16, 100_000))
    inputs = [tf.fill([1, 2 + i % 2], float(i)) for i in range(6)]
    outputs = call_at_once(batcher, inputs)
    assert [y.shape[1] for y in outputs] == [2, 3, 2, 3, 2, 3]
    assert len(recorder.sizes) >= 2


def test_batch_threads_that_would_wait_for_ever_are_refused():
    threads = tf.config.threading.get_inter_op_parallelism_threads()
    with pytest.raises(ConfigError, match=f"{threads} batch threads would wait"):
        Batcher(Recorder().function, BatchingParameters(num_batch_threads=threads))


def test_a_models_error_reaches_its_callers_with_its_code():
    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32)])
    def positive(x):
        with tf.control_dependencies([tf.debugging.assert_positive(x, "too low")]):
            return [tf.identity(x)]

    batcher = Batcher(positive.get_concrete_function(), BatchingParameters(4))
    assert batcher([tf.ones([2])])[0].numpy().tolist() == [1, 1]
    with pytest.raises(ServingError, match="too low") as caught:
        batcher([tf.zeros([2])])
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_more_shapes_than_queues_still_get_answers(monkeypatch):
    monkeypatch.setattr(batching, "MAX_QUEUES", 2)
    batcher = Batcher(Recorder().function, BatchingParameters())
    for width in range(1, 6):
        assert batcher([tf.ones([1, width])])[0].shape == (1, width)
    assert len(batcher._queues) == 2


def test_a_request_larger_than_a_batch_is_refused_or_split():
    recorder = Recorder()
    with pytest.raises(tf.errors.InvalidArgumentError, match="larger than maximum"):
        Batcher(recorder.function, BatchingParameters(4))([tf.ones([5])])
    splitting = BatchingParameters(16, allowed_batch_sizes=(4,), enable_large_batch_splitting=True)
    output = Batcher(recorder.function, splitting)([tf.ones([10])])
    assert output[0].numpy().tolist() == [2.0] * 10
    assert max(recorder.sizes) <= 4


def test_a_full_queue_refuses_at_once():
    recorder = Recorder(seconds=0.3)
    parameters = BatchingParameters(1, 0, max_enqueued_batches=1, num_batch_threads=1)
    batcher = Batcher(recorder.function, parameters)
    batcher([tf.ones([1])])

    def call(_) -> bool:
        try:
            batcher([tf.ones([1])])
        except tf.errors.UnavailableError:
            return False
        return True

    with futures.ThreadPoolExecutor(6) as pool:
        answered = list(pool.map(call, range(6), timeout=60))
    assert any(answered)
    assert not all(answered)
