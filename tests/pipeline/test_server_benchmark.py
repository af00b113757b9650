"""The sender against a real server; the whole benchmark is run by .ci/run."""

import time

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.local_server import free_port
from pipeline.server_benchmark import compare, sender
from pipeline.server_benchmark.compare import Measured
from tests.serving.processes import serving


def test_requests_are_answered_and_timed(add_version, tmp_path):
    add_version(1)
    request = sender.request("affine", "x", np.ones(1, np.float32))
    with serving("--model_name=affine", f"--model_base_path={tmp_path / 'affine'}") as server:
        closed = sender.closed_loop(server.port, request, 4, 0.5)
        opened = sender.open_loop(server.port, request, 40.0, 1.0)
    assert len(closed) > 20
    assert 0 < np.median(closed) < 0.1
    assert 15 < len(opened) < 80


def test_the_echo_echoes():
    port = free_port()
    request = sender.request("m", "images", np.zeros((1, 4, 4, 3), np.uint8))
    with compare._process(["pipeline.server_benchmark.echo", str(port)], port):
        assert len(sender.closed_loop(port, request, 2, 0.2)) > 10


def test_a_server_that_ends_is_said():
    started = time.monotonic()
    with (
        pytest.raises(PipelineError, match="did not start"),
        compare._process(["serving", "--no_such_flag"], free_port()),
    ):
        pass
    assert time.monotonic() - started < 30


def test_goals_are_judged():
    measured = Measured([90.0, 95.0], [100.0, 100.0], [0.3, 0.3], [0.2, 0.2])
    share, tail = compare._row("int8", measured)
    assert "ratio 0.925 (0.900 to 0.950); goal 0.9: met" in share
    assert "p99 at half that load 300 ms" in tail
    assert tail.endswith("goal 1: met")


@pytest.mark.parametrize(("rounds", "seconds"), [(0, 1.0), (1, 0.0)])
def test_nothing_cannot_be_measured(rounds, seconds):
    with pytest.raises(PipelineError, match="measure nothing"):
        compare.benchmark(rounds, seconds)
