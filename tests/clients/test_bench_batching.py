from pathlib import Path

import pytest
from tfs_client import TFSError
from tfs_client.bench.batching import Batching

from tests.conftest import ROOT

COMMITTED = ROOT / "serving" / "config" / "batching.config"


def test_the_committed_file_is_read():
    found = Batching.of_file(COMMITTED)
    assert found == Batching(32, 1000, 1000, 0, (1, 2, 4, 8, 16, 32), 16)


@pytest.mark.parametrize(
    "batching", [Batching(), Batching(4, 100, 7, 3, (2, 4)), Batching(8, 100, 7, 3, (2, 4, 8), 4)]
)
def test_what_is_written_reads_the_same(tmp_path: Path, batching: Batching):
    (tmp_path / "batching.config").write_text(batching.to_text())
    assert Batching.of_file(tmp_path / "batching.config") == batching


def test_a_batch_is_padded_to_the_next_size_that_is_allowed():
    assert [Batching(4, allowed_batch_sizes=(2, 4)).padded(n) for n in (1, 2, 3, 4)] == [2, 2, 4, 4]
    assert Batching(4).padded(3) == 3


@pytest.mark.parametrize(
    ("text", "largest"),
    [
        ("enable_large_batch_splitting { value: true } max_execution_batch_size { value: 2 }", 2),
        ("enable_large_batch_splitting { value: true }", 4),
        ("max_execution_batch_size { value: 2 }", 4),  # means nothing by itself
    ],
)
def test_requests_may_be_larger_than_batches_where_they_are_split(
    tmp_path: Path, text: str, largest: int
):
    (tmp_path / "f").write_text(f"max_batch_size {{ value: 4 }} {text}")
    assert Batching.of_file(tmp_path / "f").largest == largest


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("max_batch_size: 32", "is no batching file"),
        ("max_batch_size { value: 0 }", "max_batch_size is 0: it must be at least 1"),
        ("allowed_batch_sizes: 2 allowed_batch_sizes: 1", "must rise"),
        ("max_batch_size { value: 4 } allowed_batch_sizes: 2", "must end with max_batch_size, 4"),
        (
            "max_batch_size { value: 4 } enable_large_batch_splitting { value: true } "
            "max_execution_batch_size { value: 2 } allowed_batch_sizes: 2",
            "must end with max_batch_size, 4",
        ),
        (
            "max_batch_size { value: 4 } enable_large_batch_splitting { value: true } "
            "max_execution_batch_size { value: 8 }",
            "max_execution_batch_size is 8: it must not be above max_batch_size, 4",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, error: str):
    (tmp_path / "f").write_text(text)
    with pytest.raises(TFSError, match=f"{tmp_path}/f: .*{error}"):
        Batching.of_file(tmp_path / "f")


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(TFSError, match="none: cannot be read: No such file"):
        Batching.of_file(tmp_path / "none")
