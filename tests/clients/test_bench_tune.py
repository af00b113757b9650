"""The tuner with a server whose best setting is known."""

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
from tfs_client.bench import measure, payloads, scenarios, tune, tune_report
from tfs_client.bench.setting import Setting, sized
from tfs_client.bench.tune import Bench, Point, Tuning

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
    text = "\n".join(tune_report.report([found], compared, {"processor": "one"}))
    assert f"{found.best} **chosen**" in text
    assert "| no batching | " in text


def test_threads_are_tried_with_large_and_small_batches():
    """What is best with batches of 16 need not be best with those that are best."""
    tried = list(tune.AXES[0](tune.start(2), 2))
    assert Setting(sized(16, 2000, 1), 2) in tried
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
        ("no-such-server {port} {flags}", "no-such-server cannot be run: No such file"),
        ("/etc/passwd {port} {flags}", "/etc/passwd cannot be run: Permission denied"),
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
    found = Tuning(2, 0.5, BEST, points)
    assert found.frontier() == [points[0], points[3], points[2]]
    again = Point(BEST, 8, 70, 0.1), Point(BEST, 8, 60, 0.3)  # rounds in which it had less luck
    found.points += again
    assert found.medians()[2] == Point(BEST, 8, 70, 0.1)


def test_what_wins_most_rounds_is_chosen_and_not_what_was_lucky_once():
    other = replace(BEST, intra_op=1)
    found = tune.shares({BEST: [100, 50, 90], other: [90, 90, 80]})
    assert found == pytest.approx({BEST: 1.0, other: 0.9})


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
