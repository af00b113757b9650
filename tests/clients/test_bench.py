"""Loads, senders, windows and reports, against real servers of known behaviour."""

import csv
import json
import math
import random
import threading
import time

import grpc
import numpy as np
import pytest
from PIL import Image
from tfs_client import Client, InvalidImageError, TFSError
from tfs_client.bench import (
    command,
    compare,
    loads,
    machine,
    measure,
    payloads,
    plots,
    report,
    scenarios,
    server_side,
)
from tfs_client.bench.loads import Burst, Closed, Constant, Poisson, Replay, Steps
from tfs_client.bench.measure import Measurement
from tfs_client.bench.payloads import Payload
from tfs_client.bench.report import Report, Scenario
from tfs_client.bench.windows import Window, histogram, one_after_another, percentile, record
from tfs_client.testing import FakeServer

from tests.conftest import ROOT

SLOW_SECONDS = 0.05

# A machine that runs other tests wakes its sleepers late.
LAG_OF_A_TEST = 0.010
PATIENCE = 5  # measurements


class SlowPayload(Payload):
    """One that takes its sender long to look at."""

    def is_right(self, _: bytes) -> bool:
        time.sleep(SLOW_SECONDS)
        return True


def measured(server: FakeServer, load, window=1.0, count=1, **options) -> Measurement:
    with Client(server.address, timeout=20) as client:
        made = [Payload(one.request, 1, one.expected) for one in payloads.make(client)[:4]]
    settings = {"address": server.address, "timeout": 20}
    with measure.senders(settings, made, count) as senders:
        return senders.measure(load, window, **options)


def window_of(latencies, seconds=1.0, **counts) -> Window:
    made = Window(seconds, len(latencies), len(latencies), **counts)
    for latency in latencies:
        record(made.latency, latency)
    return made


# --- loads ---


def test_arrivals_have_the_rate_and_the_seed():
    for load in (Poisson(100), Constant(100)):
        found = [at for at, _ in zip(load.moments(1), range(5000), strict=False)]
        assert 47 < found[-1] < 53
        assert found == sorted(found)
        again = load.moments(1)
        assert found == [next(again) for _ in found]
    chance = Poisson(100).moments(1)
    gaps = np.diff([next(chance) for _ in range(5000)])
    assert 0.9 < gaps.std() / gaps.mean() < 1.1  # as of an exponential distribution
    even = Constant(100).moments(0)
    assert np.diff([next(even) for _ in range(500)]).std() < 1e-9
    assert next(Poisson(100).moments(1)) != next(Poisson(100).moments(2))


def test_steps_change_the_rate_and_bursts_come_at_once():
    found = np.array(list(Steps(((100, 5), (400, 5))).moments(3)))
    assert 400 < (found < 5).sum() < 600
    assert 1800 < (found >= 5).sum() < 2200
    assert found.max() < 10
    bursts = Burst(3, 0.5).moments(0)
    assert [next(bursts) for _ in range(7)] == [0, 0, 0, 0.5, 0.5, 0.5, 1.0]


def test_a_replay_begins_at_its_first_moment(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("1700000001.5\n1700000000\n\n1700000000.25\n")
    assert list(Replay.of_file(str(log)).moments(0)) == [0.0, 0.25, 1.5]


@pytest.mark.parametrize(
    ("text", "words"),
    [("1\ntwo\n", "line 2: 'two' is no time"), ("nan\n", "line 1: 'nan'"), ("\n", "no timestamps")],
)
def test_what_is_no_replay_is_refused(tmp_path, text, words):
    log = tmp_path / "log.txt"
    log.write_text(text)
    with pytest.raises(TFSError, match=words):
        Replay.of_file(str(log))
    with pytest.raises(TFSError, match="cannot be read"):
        Replay.of_file(str(tmp_path / "none"))


# --- senders ---


@pytest.mark.parametrize("count", [1, 2])
def test_callers_wait_for_their_answers(count):
    most, now, lock = 0, 0, threading.Lock()

    def classify(_):
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return [("cat", 1.0)]

    with FakeServer(classify) as server:
        found = measured(server, Closed(3), 0.5, count)
    assert most == 3
    assert found.whole.wrong == found.bad == 0
    assert 3 <= len(found.windows) <= 10
    assert abs(found.whole.completed - found.whole.sent) <= 3
    assert 60 < found.whole.images_per_second <= 150
    assert found.whole.percentile(50) == pytest.approx(0.02, abs=0.02)


def test_a_known_latency_is_found_again():
    chance = random.Random(1)
    delays = [chance.uniform(0.05, 0.15) for _ in range(100_000)]
    turn = iter(delays)

    def slow(_):
        time.sleep(next(turn))
        return [("cat", 1.0)]

    with FakeServer(slow) as server:
        for _ in range(PATIENCE):  # as a user would, whose sender was itself the limit
            found = measured(server, Poisson(120), 1.5, most=4, least=4)
            if not found.invalid:
                break
    whole = found.whole
    assert whole.errors.total() == 0
    assert whole.sent == whole.latency.total_count > 650
    for q in (50, 90):
        expected = np.percentile(delays, q)
        # And what gRPC takes, and as late as the sender was are its receiver, the server and what
        # the server's sleep wakes: other tests run beside this one.
        assert whole.percentile(q) < 1.05 * expected + LAG_OF_A_TEST + 4 * found.lag
        assert whole.percentile(q) > 0.95 * expected


def test_a_stall_shows_though_nobody_else_is_slow():
    stalled = threading.Lock()

    def stalling(_):
        with stalled:
            return [("cat", 1.0)]

    def stall():
        with stalled:
            time.sleep(2.0)

    with FakeServer(stalling, threads=256) as server:
        threading.Timer(3.0, stall).start()
        opened = measured(server, Poisson(100), 2.0, warm_up=0.0, least=4, most=4)
        # A closed loop sends one request into the stall, and none while it lasts.
        threading.Timer(3.0, stall).start()
        closed = measured(server, Closed(1), 2.0, warm_up=0.0, least=4, most=4)
    assert opened.whole.percentile(99) > 1.5
    assert opened.whole.percentile(90) > 0.5  # a quarter of the time
    assert closed.whole.percentile(99) < 0.1
    assert opened.whole.sent == opened.whole.latency.total_count


def test_a_sender_that_is_slow_is_the_limit():
    with FakeServer() as server:
        with Client(server.address) as client:
            made = [SlowPayload(one.request, 1) for one in payloads.make(client)[:1]]
        with measure.senders({"address": server.address}, made) as senders:
            for load in (Poisson(50), Closed(4)):
                found = senders.measure(load, 0.5, most=3, check=1)
                assert "INVALID: the sender was" in found.verdict
                assert "INVALID" in report.row([found])


def test_failures_are_counted_not_timed_and_a_dead_server_is_not_hammered():
    with FakeServer() as server:
        with Client(server.address) as client:
            made = payloads.make(client)[:1]
        with measure.senders({"address": server.address}, made) as senders:
            server.fail(grpc.StatusCode.INVALID_ARGUMENT, "no", times=100_000)
            found = senders.measure(Closed(2), 0.3)
            opened = senders.measure(Constant(20), 0.3)
    for each in (found, opened):
        assert each.whole.latency.total_count == each.whole.completed == 0
        assert each.whole.errors == {"INVALID_ARGUMENT: no": each.bad}
        assert each.steady is False
    assert 2 <= found.bad < 2 * 35
    assert "INVALID_ARGUMENT: no" in report.row([found])


@pytest.mark.parametrize("count", [1, 2])
def test_answers_are_compared_with_the_first(count):
    labels = iter([[("cat", 1.0)]] * 64 + [[("dog", 1.0)]] * 100_000)
    with FakeServer(lambda _: next(labels)) as server:
        found = measured(server, Constant(50), 0.5, count, check=2, least=3, most=3)
    whole = found.whole
    assert 0.4 * whole.sent <= whole.wrong <= 0.6 * whole.sent
    assert found.bad == whole.wrong


def test_steps_and_replays_are_sent_whole_and_once():
    with FakeServer() as server:
        found = measured(server, Steps(((20, 1), (60, 1))), 1.0, 2)
        assert [window.sent for window in found.windows] == pytest.approx([20, 60], abs=20)
        assert found.steady is None
        replayed = measured(server, Replay((0.0, 0.1, 0.1, 1.4)), 0.5)
        assert [window.sent for window in replayed.windows] == [3, 0, 1]
        assert replayed.whole.seconds == pytest.approx(1.4, abs=0.01)
        cut = measured(server, Steps(((50, 1.2),)), 0.9)
        assert cut.whole.sent == cut.whole.latency.total_count  # all were answered, one or two late
        assert 0.9 * cut.whole.sent <= cut.whole.completed <= cut.whole.sent
        assert cut.whole.images_per_second == pytest.approx(cut.whole.completed / 1.2)
        server.requests.clear()


def test_every_sender_has_its_share():
    with FakeServer() as server:
        found = measured(server, Constant(100), 0.5, 3, least=3, most=3)
        peers = {request.peer for request in server.requests if request.method == "Predict"}
    assert found.whole.sent == pytest.approx(150, abs=2)
    assert len(peers) >= 4  # with the client that learnt the answers; more with IPv6


def test_a_sender_that_cannot_start_is_an_error():
    starting = measure.senders({"address": "nowhere"}, [Payload(b"", 1)])
    with pytest.raises(TFSError, match="a sender did not start"):
        starting.__enter__()


# --- payloads ---


@pytest.mark.parametrize(
    ("kind", "signature", "shape"),
    [("encoded", "serving_default", (2,)), ("uint8", "predict_images", (2, 32, 32, 3))],
)
def test_made_images_have_the_size_and_come_in_batches(kind, signature, shape):
    with FakeServer() as server, Client(server.address) as client:
        made = payloads.make(client, kind, size=32, batch=2, seed=1)
        again = payloads.make(client, kind, size=32, batch=2, seed=1)
        assert [one.request for one in made] == [one.request for one in again]
        assert len(made) == payloads.MADE / 2
        assert len({one.request for one in made}) == len(made)
        asked = server.requests[-1].message
        assert asked.model_spec.signature_name == signature
        (tensor,) = asked.inputs.values()
        assert tuple(dim.size for dim in tensor.tensor_shape.dim) == shape


def test_pixels_come_from_images_too(tmp_path):
    good, junk = tmp_path / "a.png", tmp_path / "b.png"
    Image.new("RGB", (40, 30), "red").save(good)
    junk.write_bytes(b"junk")
    with FakeServer() as server, Client(server.address) as client:
        payloads.make(client, "uint8", [str(good)], size=8)
        (tensor,) = server.requests[-1].message.inputs.values()
        assert tensor.tensor_content == bytes((255, 0, 0)) * 64
        with pytest.raises(TFSError, match="is no image"):
            payloads.make(client, "uint8", [str(junk)])


def test_what_cannot_be_sent_is_said(tmp_path):
    with FakeServer(lambda _: None) as server, Client(server.address) as client:
        with pytest.raises(TFSError, match="no signature that takes one float32"):
            payloads.make(client, "float32")
        with pytest.raises(TFSError, match="no signature 'nope': there are predict_images"):
            payloads.make(client, signature="nope")
        with pytest.raises(TFSError, match="cannot be read"):
            payloads.make(client, images=[str(tmp_path / "none.png")])
        with pytest.raises(InvalidImageError, match="made image 0: the server could not decode"):
            payloads.make(client)


# --- windows ---


def test_windows_merge_as_if_they_were_one():
    chance = np.random.default_rng(1)
    values = chance.exponential(0.1, 10_000)
    parts = [window_of(part, wrong=1) for part in np.array_split(values, 3)]
    sent_over = [Window.from_json(json.loads(json.dumps(part.to_json()))) for part in parts]
    whole = one_after_another(sent_over)
    assert (whole.seconds, whole.completed, whole.wrong) == (3.0, 10_000, 3)
    for q in (50, 90, 99, 99.9):
        assert whole.percentile(q) == pytest.approx(np.percentile(values, q), rel=0.01)


def test_percentiles_are_withheld_where_samples_are_too_few():
    few = window_of([0.010] * 49)
    assert few.percentile(50) == pytest.approx(0.010, rel=0.01)
    assert few.percentile(90) is None
    assert window_of([0.010] * 499).percentile(99) is None
    assert window_of([0.010] * 500).percentile(99) is not None
    assert percentile(histogram(), 50) is None


def test_windows_agree_within_a_tenth():
    alike = [window_of([0.010] * n) for n in (100, 95, 105)]
    assert measure.agree(alike)
    assert measure.agree([window_of([0.5] * 10), *alike])
    assert not measure.agree(alike[:2])
    assert not measure.agree([*alike[:2], window_of([0.010] * 130)])
    assert not measure.agree([*alike[:2], window_of([0.013] * 100)])
    assert not measure.agree([Window(1.0)] * 3)


# --- scenarios ---


def test_the_server_scenario_finds_the_rate_that_a_known_server_holds():
    def one_server(load, least, seed):
        """A queue with one server that takes 10 ms: what M/D/1 says, by its own recursion."""
        moments = load.moments(seed)
        free, latencies = 0.0, []
        for at in (next(moments) for _ in range(5000)):
            free = max(free, at) + 0.010
            latencies.append(free - at)
        return Measurement(str(load), 1, [window_of(latencies, free)], 0.1, True)

    found = scenarios.server(one_server, 1.0, limit=0.05, highest=100.0, batch=1, seed=1)
    assert 45 < found.value < 60  # 55 on average; it must hold with other moments too
    assert scenarios.server(one_server, 1.0, 0.005, 100.0, 1, 1).value == 0
    assert "nothing was answered" in scenarios.server(one_server, 1.0, 0.05, 0.0, 1, 1).text
    assert found.valid


def test_scenarios_of_a_fake_server():
    told = []
    with FakeServer(threads=8) as server:
        with Client(server.address) as client:
            made = payloads.make(client)
        with measure.senders({"address": server.address}, made) as senders:
            measuring = scenarios.measuring(senders, 0.3, told.append)
            alone = scenarios.single_stream(measuring, 0)
            offline = scenarios.offline(measuring, 0)
    assert [each.load for each in told] == ["1 caller", "64 callers"]
    assert 0 < alone.value < 0.1
    assert offline.value == told[1].whole.images_per_second > 100


# --- reports ---


def made_report(scale=1.0, count=6, **counts) -> Report:
    chance = np.random.default_rng(int(100 * scale))
    windows = [
        window_of(scale * chance.gamma(9, 0.01, int(300 / scale)), **counts) for _ in range(count)
    ]
    repeats = [Measurement("8 callers", 1, windows[n : n + 3], 0.3, True) for n in (0, 3)]
    server = {"address": "localhost:1", "model": "googlenet", "version": 3}
    side = [{"queue_ms": 1.5}]
    found = [Scenario("Offline", 300.0, "300.0 images/s", valid=True)]
    return Report(machine.describe(), server, {"seed": 0}, [repeats], side, found)


def test_a_report_is_written_whole_and_read_again(tmp_path):
    written = made_report()
    command.write(written, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {f"{name}.png" for name in plots.PICTURES}
    assert names == {"report.json", "report.csv", "report.html", *pictures}
    read = Report.of_file(tmp_path / "out")
    assert read.to_json() == written.to_json()
    (line,) = csv.DictReader((tmp_path / "out" / "report.csv").read_text().splitlines())
    assert (line["load"], line["repeats"], line["queue_ms"]) == ("8 callers", "2", "1.500")
    assert float(line["p50_ms"]) == pytest.approx(86.7, rel=0.05)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(plots.PICTURES)
    assert "Offline: 300.0 images/s" in page
    for name in pictures:
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_what_is_no_report_is_refused(tmp_path):
    with pytest.raises(TFSError, match="cannot be read"):
        Report.of_file(tmp_path)
    for text, words in (
        ("{}", "is no report"),
        ("[", "is no report"),
        ('{"format": 9}', "of format 9"),
    ):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(TFSError, match=words):
            Report.of_file(tmp_path)


def test_a_row_has_the_spread_of_repeats():
    (repeats,) = made_report().measurements
    assert report.row(repeats).split()[:6] == ["8", "callers", "300.0", "(300.0", "to", "300.0)"]
    assert "(" not in report.row(repeats[:1])


def test_a_row_says_that_one_of_its_repeats_is_invalid():
    (repeats,) = made_report().measurements
    for position, late in enumerate((0, 15)):
        for moment in range(1000):
            record(repeats[position].windows[0].lag, 0.1 if moment < late else 0.0)
    assert not measure.together(repeats).invalid
    assert "INVALID: the sender was 100 ms late" in report.row(repeats)


def test_the_machine_is_described():
    found = machine.describe()
    assert {"date", "commit", "processor", "cores", "memory", "command"} <= set(found)
    assert 0 < machine.cpu_limit() <= 1024
    assert str(ROOT) not in " ".join(found.values())


@pytest.mark.parametrize(("wanted", "stolen", "share"), [(150, 30, 0.2), (0, 0, 0.0)])
def test_what_the_host_took_is_a_share_of_what_was_wanted(
    tmp_path, monkeypatch, wanted, stolen, share
):
    stat = tmp_path / "stat"
    monkeypatch.setattr(machine, "_STAT", stat)
    stat.write_text("cpu  100 1 50 7777 8888 2 3 40 0 0\ncpu0 1 1 1 1\n")
    before = machine.ProcessorTime.now()
    assert before == (196, 40)
    stat.write_text(f"cpu  {100 + wanted - stolen} 1 50 9999 9999 2 3 {40 + stolen} 0 0\n")
    assert machine.ProcessorTime.now().stolen_since(before) == share


def test_a_machine_that_tells_nothing_of_its_host_is_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_STAT", tmp_path / "none")
    assert machine.ProcessorTime.now().stolen_since(machine.ProcessorTime.now()) == 0


def test_a_row_and_a_report_say_what_the_host_took():
    written, again = made_report(), made_report()
    again.measurements[0][1].stolen = 0.46
    words = "the host took 46% of the processors' time"
    assert report.row(again.measurements[0]).endswith(words)
    assert "the host" not in report.row(written.measurements[0])
    (line,) = csv.DictReader(report.rows_of_csv(again).splitlines())
    assert line["stolen"] == "0.46"
    assert list(again.remarks()) == [f"8 callers: {words}"]
    assert list(written.remarks()) == []


# --- compare ---


@pytest.mark.parametrize(("scale", "worse"), [(1.0, False), (1.2, True), (0.8, False)])
def test_a_regression_is_one_beyond_chance(scale, worse):
    found = {change.name: change for change in compare.changes(made_report(), made_report(scale))}
    assert set(found) == {"images/s", "p50 ms", "p90 ms", "p99 ms"}
    assert found["p50 ms"].low < scale < found["p50 ms"].high
    assert found["images/s"].after == pytest.approx(300 / scale, rel=0.01)
    assert any(change.is_regression(0.05) for change in found.values()) == worse
    assert ("REGRESSION" in found["p50 ms"].row(0.05)) == worse


def test_what_cannot_be_compared_is_refused():
    other = made_report()
    other.measurements[0][0].load = "9 callers"
    with pytest.raises(TFSError, match="no load in common"):
        list(compare.changes(made_report(), other))
    busy = made_report()
    busy.measurements[0][0].processor = 1.0
    with pytest.raises(TFSError, match="of the second report is INVALID"):
        list(compare.changes(made_report(), busy))
    late = made_report()
    first, second = late.measurements[0]
    for n in range(100):
        record(first.windows[0].lag, 1.0 if n < 2 else 0.0)
        record(second.windows[0].lag, 0.0)
    assert (bool(first.invalid), measure.together([first, second]).invalid) == (True, "")
    with pytest.raises(TFSError, match="of the second report is INVALID"):
        list(compare.changes(made_report(), late))
    assert compare.new_failures(made_report(), made_report(wrong=1)) == 6
    assert compare.new_failures(made_report(wrong=1), made_report(wrong=1)) == 0
    assert compare.new_failures(made_report(wrong=1), made_report(wrong=100)) == 600


def test_of_a_single_window_nothing_is_said():
    before, after = made_report(), made_report(1.2)
    for each in (before, after):
        each.measurements = [[row[0]] for row in each.measurements]
        each.measurements[0][0].windows = each.measurements[0][0].windows[:1]
    found = list(compare.changes(before, after))
    assert found
    assert not any(change.is_regression(0.05) for change in found)


def test_what_answers_nothing_any_more_is_worse():
    dead = made_report()
    for row in dead.measurements:
        for each in row:
            each.windows = [Window(1.0, sent=300) for _ in each.windows]
    (change,) = compare.changes(made_report(), dead)
    assert (change.name, change.after) == ("images/s", 0)
    assert change.is_regression(0.05)


# --- the server's side ---

METRICS = """# TYPE :tensorflow:serving:request_latency histogram
:tensorflow:serving:request_latency_bucket{model_name="m",API="Predict",le="10"} 1
:tensorflow:serving:request_latency_sum{model_name="m",API="Predict"} %d
:tensorflow:serving:request_latency_count{model_name="m",API="Predict"} %d
"""


def test_the_servers_metrics_are_those_of_the_time_between():
    before, after = (server_side.totals(METRICS % of) for of in ((5000, 5), (45000, 15)))
    found = server_side.between(before, after)
    assert found == {"server_ms": 4.0}
    for url, words in (("ftp://x", "no URL of"), ("http://localhost:1/", "no metrics can be read")):
        with pytest.raises(TFSError, match=words):
            server_side.scrape(url)


def test_a_load_says_what_it_is():
    found = [Closed(1), Closed(8), Poisson(50), Constant(50), Burst(64, 2), Steps(((5, 1), (9, 2)))]
    assert list(map(str, found)) == [
        "1 caller", "8 callers", "50/s", "50/s even", "64 each 2 s", "5:1,9:2",
    ]  # fmt: skip
    assert str(Poisson(math.pi * 100)) == "314.2/s"
    assert loads.ARRIVALS["constant"] is Constant
