"""A bad image in a merged batch, through a running server: the others get their answers."""

import concurrent.futures
import shutil
import threading

import pytest
import tensorflow as tf
from tfs_client import InvalidImageError

from pipeline import local_server
from tests.conftest import COLOURS, colour_image
from tests.pipeline import hostile

CALLS = 64


@pytest.fixture(scope="module")
def merging(models, tmp_path_factory):
    """A server that waits until a batch is full: who is answered in time was merged into one."""
    folder = tmp_path_factory.mktemp("merging")
    repository = shutil.copytree(models, folder / "models")
    # The requests in it would wait for a full batch too.
    (repository / "googlenet/1/assets.extra/tf_serving_warmup_requests").unlink()
    batching = folder / "batching.config"
    batching.write_text(
        f"max_batch_size {{ value: {CALLS} }} batch_timeout_micros {{ value: 60000000 }}"
        "max_enqueued_batches { value: 10 } num_batch_threads { value: 1 }"
    )
    with local_server.serving(repository, f"--batching_parameters_file={batching}") as client:
        yield client


@pytest.mark.parametrize(
    "bad",
    [b"junk", b"", hostile.claiming("jpeg", 6, 5)[:-40], *hostile.refused()],
    ids=lambda bad: f"{len(bad)} bytes, {bad[:4]!r}",
)
def test_63_right_answers_and_one_error(merging, bad):
    names = [sorted(COLOURS)[i % len(COLOURS)] for i in range(CALLS - 1)]
    images = [tf.io.encode_jpeg(colour_image(x, 700 + i)).numpy() for i, x in enumerate(names)]
    images.insert(20, bad)
    together = threading.Barrier(CALLS)

    def ask(image: bytes) -> str:
        together.wait(20)
        try:
            return merging.classify(image, timeout=30).label
        except InvalidImageError:
            return "error"

    with concurrent.futures.ThreadPoolExecutor(CALLS) as pool:
        answers = list(pool.map(ask, images))
    assert answers.pop(20) == "error"
    assert answers == names
