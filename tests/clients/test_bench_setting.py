from dataclasses import replace
from pathlib import Path

from tfs_client.bench import setting
from tfs_client.bench.batching import Batching
from tfs_client.bench.setting import Setting, sized

BEST = Setting(sized(16, 2000, 2), 2)


def test_flags_are_for_the_setting():
    assert Setting(None).flags(Path("x")) == []
    assert BEST.flags(Path("x")) == [
        "--tensorflow_intra_op_parallelism=2", "--enable_batching", "--batching_parameters_file=x",
        "--grpc_max_threads=96",
    ]  # fmt: skip
    assert Setting(sized(64, 0, 4)).flags(Path("x"))[-1] == "--grpc_max_threads=512"


def test_a_setting_takes_requests_as_large_as_a_warm_up_whatever_its_batches():
    assert sized(8, 0, 1) == Batching(32, 0, 1000, 1, (1, 2, 4, 8, 32), 8)
    assert sized(64, 0, 1) == Batching(64, 0, 1000, 1, (1, 2, 4, 8, 16, 32, 64))


def test_a_setting_that_was_written_is_read_with_its_threads(tmp_path):
    best = Setting(sized(16, 2000, 3), 1)
    for name, text in setting.files({2: best}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert setting.setting_of(tmp_path / "cpus" / "2" / "batching.config") == best
    (tmp_path / "batching.config").rename(tmp_path / "alone")
    (tmp_path / "flags").unlink()
    assert setting.setting_of(tmp_path / "alone") == replace(best, intra_op=0)


def test_files_are_for_each_limit_and_say_which_were_measured(tmp_path):
    one, two = Setting(sized(8, 0, 1), 1), Setting(sized(16, 1000, 2), 1)
    written = setting.files({1: one, 2: two})
    assert set(written) == {
        f"{folder}{name}"
        for folder in ("", "cpus/1/", "cpus/2/", "cpus/4/", "cpus/8/")
        for name in ("batching.config", "flags")
    }
    for name, text in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    read = {n: Batching.of_file(tmp_path / f"cpus/{n}/batching.config") for n in (1, 2, 4, 8)}
    assert read == {
        1: sized(8, 0, 1), 2: sized(16, 1000, 2), 4: sized(16, 1000, 4), 8: sized(16, 1000, 8)
    }  # fmt: skip
    assert Batching.of_file(tmp_path / "batching.config") == sized(16, 1000, 0)  # as cores are
    assert "measured on 2 cores, for any." in written["batching.config"]
    assert "limit of 2, measured." in written["cpus/2/batching.config"]
    assert "limit of 8, derived from 2 cores." in written["cpus/8/batching.config"]
    assert written["cpus/8/flags"] == (
        "--tensorflow_intra_op_parallelism=1\n--grpc_max_threads=256\n"
    )
    whole = Setting(sized(16, 1000, 2), 2)  # each batch has all cores
    assert setting.scaled(whole, 2, 8) == replace(whole, intra_op=8)
    assert setting.anywhere(whole, 2) == replace(whole, intra_op=0)
    odd = Setting(sized(16, 1000, 3), 1)
    assert setting.anywhere(odd, 2) == odd
