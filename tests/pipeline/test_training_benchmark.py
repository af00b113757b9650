"""Real workers take turns, what fails is left out, and no process stays."""

import importlib.util
import sys
from dataclasses import replace

import psutil
import pytest

from pipeline import config
from pipeline.errors import PipelineError
from pipeline.training_benchmark import report, start_up
from pipeline.training_benchmark.compare import (
    Shape,
    benchmark,
    check_own,
    configurations,
    measure,
)
from pipeline.training_benchmark.report import FILES, OURS, PEER, REAL, SYNTHETIC, Result, Row
from pipeline.training_benchmark.worker import Worker, WorkerError

TINY = Shape(
    "tiny",
    config.from_preset("best", early_size=0, image_size=16, batch_size=2, crop=0.5),
    classes=3,
    photos=8,
)


@pytest.fixture(autouse=True)
def no_process_is_left():
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.fixture
def chosen(tmp_path):
    return configurations(TINY, tmp_path, None, tmp_path / "photos")


@pytest.mark.slow  # .ci/run measures too
def test_workers_take_turns_and_one_that_fails_is_left_out(chosen):
    ours = [c for c in chosen if c.framework == OURS]
    broken = replace(ours[0], name="broken", settings={"recipe": {"preset": "x", "precision": "y"}})
    result = measure("tiny", [*ours, broken], rounds=1, seconds=0.1)
    assert list(result.rates) == [
        Row(f"TensorFlow {precision}", OURS, data)
        for precision in ("fp32", "bf16")
        for data in (SYNTHETIC, REAL, FILES)
    ]
    assert all(len(rates) == 1 and rates[0] > 0 for rates in result.rates.values())
    assert list(result.failures) == ["broken"]
    assert "unknown precision 'y'" in result.failures["broken"]
    check_own([result])
    result.failures["TensorFlow fp32"] = "why"
    with pytest.raises(PipelineError, match="tiny: TensorFlow fp32 could not be measured: why"):
        check_own([result])
    assert result.versions["TensorFlow"].startswith("2.20.")


@pytest.mark.slow
@pytest.mark.timeout(1200)  # PyTorch's compiler
def test_the_peer_is_measured(chosen, monkeypatch):
    if not all(importlib.util.find_spec(name) for name in ("torch", "torchvision")):
        pytest.skip("torch or torchvision is not installed")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # on busy cores its threads wait for each other
    peers = [c for c in chosen if c.framework == PEER]
    result = measure("tiny", peers, rounds=1, seconds=0.1)
    assert {row.configuration for row in result.rates} == {c.name for c in peers}
    assert not result.failures


def test_a_worker_that_ends_names_its_reason():
    with (
        Worker("pipeline.no_such_worker", {}) as worker,
        pytest.raises(WorkerError, match="No module named"),
    ):
        worker.warm_up()


def test_a_worker_that_does_not_answer_is_ended(tmp_path, monkeypatch):
    (tmp_path / "deaf.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("pipeline.training_benchmark.worker.WARM_UP_SECONDS", 0.1)
    with (
        pytest.raises(WorkerError, match="no answer for 0 s"),
        Worker("deaf", {}) as worker,
    ):
        worker.warm_up()


def test_an_interrupt_leaves_no_worker(chosen, monkeypatch):
    def interrupted(_: Worker) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Worker, "warm_up", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure("tiny", chosen[:1], rounds=1, seconds=0.1)


def test_the_report_has_medians_and_ratios_within_rounds():
    fast, real = Row("TensorFlow bf16", OURS, SYNTHETIC), Row("TensorFlow bf16", OURS, REAL)
    peer = Row("PyTorch eager fp32", PEER, SYNTHETIC)
    rates = {fast: [100.0, 50.0, 200.0], real: [98.0, 49.0, 190.0], peer: [50.0, 50.0, 100.0]}
    result = Result("28×28", rates, {"PyTorch compiled fp32": "no compiler"}, {"torch": "2.13"})
    text = report.write({"cores": "2"}, [result], [31.0, 12.0, 13.0], "", 3, 6.0, True)
    assert "## 28×28" in text
    assert "Failed" not in text
    assert "| TensorFlow bf16    | synthetic |    100.0 |   50.0 |   200.0 |" in text
    assert "- TensorFlow bf16 ÷ PyTorch eager fp32: 2.000 (1.000 to 2.000); goal 1.3: met" in text
    assert "real ÷ synthetic data: 0.980 (0.950 to 0.980); goal 0.97: met" in text
    assert "- PyTorch compiled fp32 failed and is left out: no compiler" in text
    assert "- torch: 2.13" in text
    assert "the end of the first step: 13.0 s\n(31.0, 12.0, 13.0); goal 30 s: met" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in table}) == 1


def test_without_the_peer_the_report_says_how_to_get_it():
    rates = {Row("TensorFlow fp32", OURS, SYNTHETIC): [10.0]}
    text = report.write({}, [Result("tiny", rates)], [], "no data", 1, 1.0, False)
    assert report.INSTALL_PEER in text
    assert text.endswith("## Start-up\n\nFailed: no data\n")


def test_start_up_is_timed_by_what_the_terminal_shows():
    shows = "import sys, time; time.sleep(0.3); print('loss 2.3', file=sys.stderr); time.sleep(600)"
    seconds = start_up.seconds_until(b"loss ", [sys.executable, "-c", shows])
    assert 0.3 <= seconds < 60


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('no data')", "ended before its first step: no data"),
        ("import time; time.sleep(600)", "too slow before its first step: it said nothing"),
    ],
)
def test_a_training_that_does_not_start_is_an_error(code, message):
    with pytest.raises(PipelineError, match=message):
        start_up.seconds_until(b"loss ", [sys.executable, "-c", code], limit_seconds=5.0)


def test_no_rounds_measure_nothing(tmp_path):
    with pytest.raises(PipelineError, match="0 rounds of 1 seconds measure nothing"):
        benchmark(tmp_path, None, rounds=0, seconds=1.0)
