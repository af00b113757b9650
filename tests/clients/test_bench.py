import asyncio
import threading
import time
from collections import Counter

import numpy as np
import tensorflow as tf
from tfs_client import AsyncClient, Client, Hooks
from tfs_client.bench import closed_loop, open_loop, report
from tfs_client.bench.closed_loop import Result
from tfs_client.testing import FakeServer

from tests.conftest import COLOURS


def solid(colour: tuple[int, int, int]) -> bytes:
    return tf.io.encode_png(np.full((28, 28, 3), colour, np.uint8)).numpy()


def test_answers_are_checked_and_calls_counted(client):
    images = [solid(colour) for colour in COLOURS.values()]
    right = [answer.label for answer in client.classify(images)]
    result = closed_loop.measure(client, images, right, callers=3, seconds=1)
    assert result.wrong == 0
    assert not result.errors
    assert len(result.latencies) > 3
    assert 0 < min(result.latencies) < max(result.latencies) < 1
    wrong = closed_loop.measure(client, images, ["pink"] * 3, callers=1, seconds=0.5)
    assert wrong.wrong > 0
    assert not wrong.latencies


def test_failed_calls_are_counted_not_timed(client):
    result = closed_loop.measure(client, [b"junk"], ["red"], callers=2, seconds=0.3)
    assert not result.latencies
    assert 1 < result.errors.total() < 20
    assert "image 0" in next(iter(result.errors))


def test_percentiles_are_withheld_where_samples_are_too_few():
    few = report.closed_row(Result(1, 1.0, [0.010] * 49)).split()
    assert few == ["1", "49.0", "-", "-", "-", "0", "0"]
    some = report.closed_row(Result(2, 2.0, [0.010] * 100)).split()
    assert some == ["2", "50.0", "10.0", "10.0", "-", "0", "0"]
    many = report.closed_row(
        Result(2, 1.0, [0.001] * 990 + [0.1] * 10, wrong=3, errors=Counter(["no"]))
    ).split()
    assert many[2:] == ["1.0", "1.0", "2.0", "3", "1", "no"]


def at_rate(server: FakeServer, rate: float, seconds: float, **settings) -> open_loop.Result:
    async def run():
        async with AsyncClient(server.address, **settings) as client:
            await client.classify(b"x")
            return await open_loop.measure(client, [b"x"], ["cat"], rate, seconds)

    return asyncio.run(run())


def test_arrivals_have_the_rate_and_the_seed():
    for arrivals in open_loop.ARRIVALS:
        found = list(open_loop.moments(100, 50, arrivals, seed=1))
        assert 4700 < len(found) < 5300
        assert found == sorted(found)
        assert found == list(open_loop.moments(100, 50, arrivals, seed=1))
    gaps = np.diff(list(open_loop.moments(100, 50, "poisson", seed=1)))
    assert 0.9 < gaps.std() / gaps.mean() < 1.1  # as of an exponential distribution
    assert np.diff(list(open_loop.moments(100, 5, "constant", seed=1))).std() < 1e-9


def test_a_known_latency_is_found_again():
    chance = np.random.default_rng(1)
    delays = chance.uniform(0.05, 0.15, 100_000)
    turn = iter(delays.tolist())

    def slow(_):
        time.sleep(next(turn))
        return [("cat", 1.0)]

    with FakeServer(slow) as server:
        result = at_rate(server, 100, 6)
    assert not result.errors
    assert result.sent == len(result.latencies) > 500
    for q in (50, 90):
        found = np.percentile(result.latencies, q)
        # And what gRPC takes, and the sender was late: it has its server in its own process here.
        assert found < 1.05 * np.percentile(delays, q) + 0.010 + result.lag
        assert found > 0.95 * np.percentile(delays, q)


def test_a_stall_shows_though_nobody_else_is_slow():
    stalled = threading.Lock()

    def stalling(_):
        with stalled:
            return [("cat", 1.0)]

    def stall():
        with stalled:
            time.sleep(2.0)

    with FakeServer(stalling, threads=256) as server:
        threading.Timer(2.0, stall).start()
        result = at_rate(server, 50, 8)
        # A closed loop sends one request into the stall, and none while it lasts.
        threading.Timer(2.0, stall).start()
        with Client(server.address) as client:
            closed = closed_loop.measure(client, [b"x"], ["cat"], 1, 8)
    assert np.percentile(result.latencies, 99) > 1.5
    assert np.percentile(closed.latencies, 99) < 0.1


def test_a_slow_sender_is_told(server):
    hooks = Hooks(on_request=lambda _: time.sleep(0.05))
    result = at_rate(server, 50, 2, hooks=hooks)
    assert not result.valid
    assert "INVALID: the sender was the limit" in report.open_row(result)


def test_failures_of_an_open_loop_are_counted(server):
    with FakeServer(lambda _: None) as refusing:
        result = asyncio.run(refused(refusing))
    assert not result.latencies
    assert result.errors.total() == result.sent == len(result.lags) > 5


async def refused(server: FakeServer) -> open_loop.Result:
    async with AsyncClient(server.address) as client:
        return await open_loop.measure(client, [b"x"], ["cat"], 20, 1, "constant")
