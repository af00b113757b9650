"""Reports of a machine whose times are known -> what is planned."""

from dataclasses import replace

import pytest
from tfs_client import TFSError
from tfs_client.bench import plan as planning
from tfs_client.bench.batching import Batching
from tfs_client.bench.loads import Poisson
from tfs_client.bench.measure import Measurement
from tfs_client.bench.plan import TOLERANCE, checks, plan, service_of
from tfs_client.bench.queueing import simulate
from tfs_client.bench.report import Report
from tfs_client.bench.windows import Window, record

BATCHING = Batching(8, 2000, 1000, 2, (1, 2, 4, 8))
WAIT = 0.0025  # the timeout, and half of a look
FIXED, EACH = 0.006, 0.004  # seconds of a batch, and of each image in it
GAIN = 1.25  # of two batches of 8 at once
BESIDE = 0.001  # seconds of a request that it is not at work or in the queue
SENDER = 0.02  # of a core
COMMAND = "tfs bench --concurrency 1,2 --batch 1,2,4,8 --output FOLDER"


@pytest.fixture(autouse=True)
def fewer_requests(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(planning, "REQUESTS", 4000)


def callers(amount: int, batch: int, seconds: float, requests: int = 200) -> list[Measurement]:
    window = Window(requests * seconds / amount, completed=requests * batch, sent=requests)
    for step in range(requests):
        record(window.latency, seconds * (1 + 0.01 * (step - requests // 2) / requests))
    load = f"{amount} callers"
    return [Measurement(load, batch, [window], SENDER, True, closed=True, amount=amount)]


def report(batching: Batching | None = BATCHING) -> Report:
    alone = {size: FIXED + EACH * size for size in ((1, 2, 4, 8) if batching else (1,))}
    last = max(alone)
    runtime = [
        seconds + (WAIT if batching and size < last else 0) for size, seconds in alone.items()
    ]
    rows = [
        callers(1, size, seconds + BESIDE) for size, seconds in zip(alone, runtime, strict=True)
    ]
    rows.append(callers(2, last, 2 * (alone[last] / GAIN + BESIDE)))
    side = [{"runtime_ms": 1e3 * seconds} for seconds in runtime]
    return Report({"cores": "2 of 4, load before 0.1"}, {}, {}, rows, side)


def test_times_of_batches_are_what_was_measured_without_the_wait():
    found = service_of(report(), BATCHING, 2.0)
    for size, seconds in found.seconds.items():
        assert seconds == pytest.approx(FIXED + EACH * size, rel=5e-3)


def test_work_is_what_it_takes_when_no_core_is_idle():
    found = service_of(report(), BATCHING, 2.0)
    work = {size: found.seconds[size] * share for size, share in found.demand.items()}
    image = ((FIXED + 8 * EACH) / GAIN - FIXED / 2) / 8
    for size, seconds in work.items():
        assert seconds == pytest.approx(FIXED / 2 + size * image, rel=5e-3)


def test_a_request_takes_what_the_server_does_not_know_of():
    assert service_of(report(), BATCHING, 2.0).request == pytest.approx(BESIDE, rel=2e-2)


def test_without_the_servers_metrics_it_is_what_the_sender_computes():
    measured = report()
    measured.server_side = []
    expected = SENDER * (FIXED + EACH + WAIT + BESIDE)
    assert service_of(measured, BATCHING, 2.0).request == pytest.approx(expected, rel=2e-3)


def test_no_batch_uses_more_than_all_cores():
    measured = report()
    measured.measurements[-1] = callers(2, 8, 3 * (FIXED + 8 * EACH + BESIDE))  # at once is slower
    assert max(service_of(measured, BATCHING, 2.0).demand.values()) == 1


def test_no_batch_uses_less_than_a_core():
    """Also where two at once are each faster than one was alone."""
    measured = report()
    measured.measurements[-1] = callers(2, 8, 0.5 * (FIXED + 8 * EACH + BESIDE))
    assert set(service_of(measured, BATCHING, 2.0).demand.values()) == {1 / 2}


def test_the_time_varies_as_one_callers_requests_do():
    spread = service_of(report(), BATCHING, 2.0).spread
    assert min(spread) == pytest.approx(0.994, abs=2e-3)  # 0.5 % of the wait, too
    assert max(spread) == pytest.approx(1.006, abs=2e-3)


def test_sizes_that_are_padded_are_left_out():
    batching = replace(BATCHING, allowed_batch_sizes=(4, 8))
    measured = report()
    measured.measurements[0] = callers(1, 4, FIXED + 4 * EACH + WAIT + BESIDE)
    assert list(service_of(measured, batching, 2.0).seconds) == [4, 8]


def test_without_batching_one_size_is_enough():
    found = service_of(report(None), None, 2.0)
    assert found.seconds == {1: pytest.approx(FIXED + EACH, rel=2e-3)}
    assert found.demand == {1: pytest.approx(1 / GAIN, rel=5e-3)}


@pytest.mark.parametrize("batching", [BATCHING, None])
def test_a_replica_holds_less_than_its_cores_can_do(batching: Batching | None):
    found = plan(report(batching), batching, 1000, 0.1)
    most = GAIN * (8 / (FIXED + 8 * EACH) if batching else 1 / (FIXED + EACH))
    assert 0.4 * most < found.held < most
    assert found.one_dead.percentile(99) <= 0.1 * 1.02
    assert found.cores == 2


def test_one_may_die_and_the_autoscaler_may_be_late():
    few, many = (plan(report(), BATCHING, rate, 0.1) for rate in (10, 50_000))
    assert few.replicas == 2
    assert (many.replicas - 1) * many.held >= 50_000
    assert many.replicas * many.held >= 50_000 * TOLERANCE
    assert 100 * many.usual.busy - 1 < many.utilisation <= 100 * many.usual.busy


def test_more_rate_takes_more_replicas_and_a_tighter_limit_too():
    counts = [plan(report(), BATCHING, rate, 0.1).replicas for rate in (100, 1000, 10_000)]
    assert counts == sorted(set(counts))
    tighter = [plan(report(), BATCHING, 10_000, limit).replicas for limit in (0.2, 0.1, 0.05)]
    assert tighter == sorted(set(tighter))


def test_threads_of_a_file_without_any_are_the_cores():
    without = replace(BATCHING, num_batch_threads=0)
    assert str(plan(report(), without, 1000, 0.1)) == str(plan(report(), BATCHING, 1000, 0.1))


def test_the_text_says_all_of_it():
    found = plan(report(), BATCHING, 1000, 0.1)
    lines = str(found).splitlines()
    assert [line[:15].strip() for line in lines] == [
        "one replica", "replicas", "CPU request", "autoscaler", "expected", "with one dead"
    ]  # fmt: skip
    assert f"{found.held:.1f} images/s with p99 within 100 ms" in lines[0]
    assert f"{found.replicas} for 1000 images/s" in lines[1]
    assert f"2 cores each, {2 * found.replicas} together" in lines[2]


def test_loads_that_the_report_has_are_predicted():
    measured = report()
    outcome = simulate(Poisson(60), service_of(measured, BATCHING, 2.0), BATCHING, 4000, seed=7)
    window = Window(3000 / 60, sent=3000)
    for seconds in outcome.latencies:
        record(window.latency, seconds)
    rows = [
        Measurement(load, 1, [window] * 3, 0.1, True, seed=7, amount=60.0)
        for load in ("60/s", "60/s even")
    ]
    measured.measurements += [[row] for row in rows]
    found = list(checks(measured, BATCHING))
    assert [(each.load, each.q) for each in found] == [("60/s", 50), ("60/s", 99)]
    for each in found:
        assert each.predicted == pytest.approx(each.measured, rel=0.1)
    assert "60/s  p50 " in str(found[0])
    assert "ms measured: " in str(found[0])


@pytest.mark.parametrize("missing", [0, 3, 4])
def test_what_the_report_lacks_is_named_with_the_command(missing: int):
    measured = report()
    del measured.measurements[missing]
    with pytest.raises(TFSError, match=f"lacks .* of 1 and of 8.* with `{COMMAND}`"):
        plan(measured, BATCHING, 1000, 0.1)


def test_fewer_callers_than_batch_threads_may_leave_cores_idle():
    with pytest.raises(TFSError, match=r"or 4 with requests of 8: measure with `.* 1,4 "):
        plan(report(), replace(BATCHING, num_batch_threads=4), 1000, 0.1)


def test_other_errors_are_told():
    with pytest.raises(TFSError, match="no rate has its p99 within 5 ms: it is 1"):
        plan(report(), BATCHING, 1000, 0.005)
    with pytest.raises(TFSError, match="of a server with another batching file"):
        plan(report(), replace(BATCHING, batch_timeout_micros=20_000), 1000, 0.1)
    with pytest.raises(TFSError, match="does not say how many cores"):
        plan(replace(report(), machine={}), BATCHING, 1000, 0.1)


def test_measurements_that_say_nothing_are_refused():
    few, late = report(), report()
    few.measurements[0] = callers(1, 1, 0.01, requests=8)
    late.measurements[0][0].processor = 0.95
    with pytest.raises(TFSError, match="too few requests"):
        plan(few, BATCHING, 1000, 0.1)
    with pytest.raises(TFSError, match="INVALID"):
        plan(late, BATCHING, 1000, 0.1)
