"""The tuner with a server whose best setting is known, and what it writes."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from tfs_client import TFSError
from tfs_client.bench import measure, payloads, scenarios, tune
from tfs_client.bench.batching import Batching
from tfs_client.bench.tune import Bench, Point, Setting, Tuning, sized

from tests.conftest import ROOT

SERVER = f"{sys.executable} -m tests.clients.tuned_server --port={{port}} {{flags}}"
BEST = Setting(sized(16, 2000, 2), 2)


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(tune, "CALLERS", (1, 8))
    monkeypatch.setattr(tune, "WINDOWS", 3)
    monkeypatch.setattr(measure, "MOST_LAG_SECONDS", 1.0)  # other tests run beside this one
    monkeypatch.setattr(scenarios, "SAMPLES", 20)
    monkeypatch.setattr(scenarios, "STEPS", 2)
    monkeypatch.setattr(scenarios, "VERIFICATIONS", 1)


def bench(folder: Path, command: str = SERVER) -> Bench:
    said: list[str] = []
    return Bench(command, {}, lambda client: payloads.make(client)[:1], 0.2, folder, said.append)


@pytest.mark.slow
def test_the_best_setting_is_found_and_beats_what_nobody_tuned(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "AXES", (lambda *at: list(tune._sizes(*at))[:2],))  # 8 and 16
    made = bench(tmp_path)
    found = tune.search(made, 1, limit=0.5, rounds=2)
    assert found.best == Setting(sized(16, 2000, 2), 1)
    assert {point.callers for point in found.points} == {1, 8}
    (turns,) = found.turns
    assert {len(rates) for rates in turns.values()} == {2}
    assert (
        tune.shares(turns)[found.best] > 2 * tune.shares(turns)[Setting(sized(8, 2000, 2), 1)] > 0
    )
    compared = tune.beside_untuned(made, found.best, 1, limit=0.5, rounds=1)
    assert list(compared) == ["no batching", "--enable_batching alone", "tuned"]
    assert compared["tuned"].offline[0] > 2 * compared["no batching"].offline[0]
    text = "\n".join(tune.report([found], compared, {"processor": "one"}))
    assert f"{found.best} **chosen**" in text
    assert "| no batching | " in text


def test_threads_are_tried_with_large_and_small_batches():
    """What is best with batches of 32 need not be best with those that are best."""
    tried = list(tune.AXES[0](tune.start(2), 2))
    assert Setting(sized(32, 2000, 1), 2) in tried
    assert Setting(sized(8, 2000, 2), 1) in tried
    assert len(tried) == len(set(tried)) == 8


def test_a_limit_that_nothing_holds_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "AXES", (lambda at, _: [at],))
    with pytest.raises(TFSError, match=r"no setting has its p99 within 0\.1 ms: the lowest is"):
        tune.search(bench(tmp_path), 1, limit=0.0001, rounds=1)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("server {flags}", "has no {port}"),
        ("server {port}", "has no {flags}"),
        ("no-such-server {port} {flags}", "no such program"),
        ("sh -c 'echo no luck; exit 1' {port} {flags}", "did not start: no luck"),
        ("'sh {port} {flags}", "No closing quotation"),
    ],
)
def test_a_command_that_serves_nothing_is_an_error(tmp_path, command, words):
    with pytest.raises(TFSError) as caught, bench(tmp_path, command).serving(BEST, 1):
        pass
    assert words in str(caught.value)


def test_the_frontier_is_what_nothing_beats():
    other = replace(BEST, intra_op=1)
    points = [
        Point(BEST, 1, 50, 0.02), Point(other, 1, 40, 0.03), Point(BEST, 8, 90, 0.1),
        Point(other, 8, 80, 0.08), Point(other, 64, 90, 0.9),
    ]  # fmt: skip
    found = Tuning(2, 0.5, points)
    assert found.frontier() == [points[0], points[3], points[2]]
    again = Point(BEST, 8, 70, 0.1), Point(BEST, 8, 60, 0.3)  # rounds in which it had less luck
    found.points += again
    assert found.medians()[2] == Point(BEST, 8, 70, 0.1)


def test_what_wins_most_rounds_is_chosen_and_not_what_was_lucky_once():
    other = replace(BEST, intra_op=1)
    found = tune.shares({BEST: [100, 50, 90], other: [90, 90, 80]})
    assert found == pytest.approx({BEST: 1.0, other: 0.9})


def test_flags_are_for_the_setting():
    assert Setting(None).flags(Path("x")) == []
    assert BEST.flags(Path("x")) == [
        "--tensorflow_intra_op_parallelism=2", "--enable_batching", "--batching_parameters_file=x",
        "--grpc_max_threads=96",
    ]  # fmt: skip
    assert Setting(sized(64, 0, 4)).flags(Path("x"))[-1] == "--grpc_max_threads=512"


def test_a_setting_takes_requests_as_large_as_a_warm_up_whatever_its_batches():
    assert sized(8, 0, 1) == Batching(32, 0, 1000, 1, (1, 2, 4, 8), 8)
    assert sized(64, 0, 1) == Batching(64, 0, 1000, 1, (1, 2, 4, 8, 16, 32, 64))


def test_a_setting_that_was_written_is_read_with_its_threads(tmp_path):
    best = Setting(sized(16, 2000, 3), 1)
    for name, text in tune.files([Tuning(2, 0.5, best=best)]).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert tune.setting_of(tmp_path / "cpus" / "2" / "batching.config") == best
    (tmp_path / "batching.config").rename(tmp_path / "alone")
    (tmp_path / "flags").unlink()
    assert tune.setting_of(tmp_path / "alone") == replace(best, intra_op=0)


def test_files_are_for_each_limit_and_say_which_were_measured(tmp_path):
    two = Tuning(2, 0.5, best=Setting(sized(16, 1000, 2), 1))
    one = Tuning(1, 0.5, best=Setting(sized(8, 0, 1), 1))
    written = tune.files([one, two])
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
    assert tune.scaled(whole, 2, 8) == replace(whole, intra_op=8)
    assert tune.anywhere(whole, 2) == replace(whole, intra_op=0)
    odd = Setting(sized(16, 1000, 3), 1)
    assert tune.anywhere(odd, 2) == odd


def test_sigterm_ends_the_servers_too(tmp_path):
    command = [sys.executable, "-m", "tfs_client", "tune", "--server", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) as process:
        deadline = time.monotonic() + 30
        children: list[psutil.Process] = []
        while len(children) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
            children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
