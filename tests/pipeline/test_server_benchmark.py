"""Its servers and senders, small; the whole benchmark is run by .ci/run."""

import time

import pytest

from pipeline.errors import PipelineError
from pipeline.local_server import free_port
from pipeline.server_benchmark import compare
from pipeline.server_benchmark.compare import Measured


def test_both_servers_are_measured_by_one_request(add_version, tmp_path):
    add_version(1)
    base_path = tmp_path / "affine"
    with compare._serving(base_path) as (port, seconds):
        one = compare._payloads(port, "float32")[:1]
        answer = tmp_path / "answer"
        answer.write_bytes(compare._answer(port, one[0]))
        with (
            compare._answering(answer) as constant,
            compare._sending(port, one) as ours,
            compare._sending(constant, one) as theirs,
        ):
            found = [compare._saturated(each, 4, 0.3) for each in (ours, theirs)]
            half = compare._at(ours, 100.0, 1.0)
    assert 0 < seconds < compare.START_SECONDS
    assert not any("wrong" in verdict for verdict in compare._verdicts(*found, half))
    for rate, median in (compare._rate_and_median([each]) for each in found):
        assert rate > 50
        assert 0 < median < 100
    assert 500 < half.whole.sent < 700
    assert half.whole.percentile(99) > 0


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
    measured.verdicts.add("INVALID: the sender was late, so that it was the limit")
    *_, last = compare._row("int8", measured)
    assert last == "- int8: INVALID: the sender was late, so that it was the limit"


@pytest.mark.parametrize(("rounds", "seconds"), [(0, 1.0), (1, 0.0)])
def test_nothing_cannot_be_measured(rounds, seconds):
    with pytest.raises(PipelineError, match="measure nothing"):
        compare.benchmark(rounds, seconds)
