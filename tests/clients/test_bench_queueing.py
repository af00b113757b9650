"""The simulation against closed forms, and against what the batching file allows."""

import math

import pytest
from tfs_client.bench.batching import Batching
from tfs_client.bench.loads import Closed, Poisson
from tfs_client.bench.queueing import POLL_SECONDS, Service, simulate

SECONDS = 0.01
# An exponential distribution of mean 1, in even steps of probability.
EXPONENTIAL = [-math.log(1 - (step + 0.5) / 2000) for step in range(2000)]
ONE_BY_ONE = Batching(max_batch_size=1, max_enqueued_batches=10**6, num_batch_threads=1)


def service(spread=(1.0,), demand=1.0) -> Service:
    return Service({1: SECONDS}, {1: demand}, spread)


def mean(load: float, of: Service, batching: Batching | None) -> float:
    """Latency as a multiple of the service time, with the cores busy for so much of the time."""
    found = simulate(Poisson(load / SECONDS), of, batching, 100_000)
    return float(found.latencies.mean()) / SECONDS


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_one_thread_and_constant_times_are_m_d_1(load: float):
    assert mean(load, service(), ONE_BY_ONE) == pytest.approx(1 + load / 2 / (1 - load), rel=0.03)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_thread_and_exponential_times_are_m_m_1(load: float):
    found = mean(load, service(EXPONENTIAL), ONE_BY_ONE)
    assert found == pytest.approx(1 / (1 - load), rel=0.06)


def test_two_threads_that_use_half_of_the_cores_are_m_m_2():
    batching = Batching(1, 0, 10**6, 2)
    found = mean(2 * 0.7, service(EXPONENTIAL, demand=0.5), batching)
    assert found == pytest.approx(1 / (1 - 0.7**2), rel=0.05)  # Erlang's C for two servers


@pytest.mark.parametrize("spread", [(1.0,), EXPONENTIAL])
def test_without_batching_the_cores_are_shared_whatever_the_times(spread: list[float]):
    found = mean(0.7, service(spread), None)
    assert found == pytest.approx(1 / (1 - 0.7), rel=0.06)  # M/G/1 with processor sharing


def test_busy_is_the_load():
    found = simulate(Poisson(50), service(demand=0.6), None, 20_000)
    assert found.busy == pytest.approx(50 * SECONDS * 0.6, rel=0.03)
    assert found.in_flight == pytest.approx(50 * found.latencies.mean(), rel=0.03)


LARGE = Service({1: 0.010, 8: 0.045}, {1: 1.0, 8: 1.0})


def test_batches_are_as_large_as_allowed_when_there_is_enough_to_do():
    found = simulate(Closed(64), LARGE, Batching(8, 1000, 100, 2, (1, 2, 4, 8)), 20_000)
    assert found.batch == pytest.approx(8, rel=0.01)
    assert found.throughput == pytest.approx(8 / 0.045, rel=0.01)


def test_batches_are_no_larger_than_those_that_requests_are_split_into():
    split, not_split = (
        simulate(Closed(64), LARGE, batching, 20_000)
        for batching in (
            Batching(32, 1000, 100, 2, (1, 2, 4, 8, 32), 8), Batching(8, 1000, 100, 2, (1, 2, 4, 8))
        )
    )  # fmt: skip
    assert split.batch == pytest.approx(8, rel=0.01)
    assert split.percentile(99) == not_split.percentile(99)


def test_a_lone_request_waits_for_the_timeout_and_to_be_found():
    found = simulate(Closed(1), LARGE, Batching(8, 5000, 100, 2), 1000)
    assert found.batch == 1
    assert found.latencies.min() >= 0.015 - 1e-9
    assert found.latencies.max() <= 0.015 + POLL_SECONDS + 1e-9


def test_a_full_batch_does_not_wait():
    found = simulate(Closed(8), LARGE, Batching(8, 1_000_000, 100, 1), 1000)
    assert found.latencies.max() == pytest.approx(0.045)


def test_without_a_timeout_a_batch_is_what_there_is():
    found = simulate(Closed(1), LARGE, Batching(8, 0, 100, 2), 1000)
    assert found.percentile(100) == pytest.approx(0.010)


def test_a_batch_takes_the_time_of_the_size_it_is_padded_to():
    found = simulate(Closed(1), LARGE, Batching(8, 0, 100, 1, (8,)), 1000)
    assert found.percentile(50) == pytest.approx(0.045)


def test_between_known_sizes_the_time_is_on_a_line():
    assert LARGE.of(3) == (pytest.approx(0.020), 1.0)


def test_what_finds_the_queue_full_is_rejected_and_counted():
    most = 8 / 0.045
    found = simulate(Poisson(2 * most), LARGE, Batching(8, 0, 3, 1), 40_000)
    assert found.rejected == pytest.approx(0.5, abs=0.02)
    assert found.throughput == pytest.approx(most, rel=0.02)
    # Three batches wait at the most, and one is computed.
    assert found.latencies.max() <= 4 * 0.045 + 1e-9


def test_requests_come_to_the_queue_one_after_another():
    """Where nothing else takes time, what they take is all there is: M/D/1 again."""
    service = Service({1: 1e-9}, {1: 0.0}, request=SECONDS)
    found = simulate(Poisson(0.7 / SECONDS), service, ONE_BY_ONE, 20_000)
    wait = 0.7 / (2 * (1 - 0.7)) * SECONDS
    assert found.latencies.mean() == pytest.approx(wait + SECONDS, rel=0.05)


def test_a_batch_waits_for_the_requests_that_come_meanwhile():
    """With more to do than can be done, an image takes its share of a batch and its request."""
    service = Service(LARGE.seconds, LARGE.demand, request=0.001)
    found = simulate(Closed(64), service, Batching(8, 2000, 1000, 1), 8000)
    assert found.throughput == pytest.approx(8 / (0.045 + 8 * 0.001), rel=0.02)


def test_a_request_takes_one_core_where_a_batch_has_one():
    """Two batches at a time, of half of all cores each: so much less is taken from them."""
    service = Service(LARGE.seconds, {1: 0.5, 8: 0.5}, request=0.001)
    found = simulate(Closed(64), service, Batching(8, 2000, 1000, 2), 8000)
    assert found.throughput == pytest.approx(8 / (0.045 / 2 + 8 * 0.001 / 2), rel=0.02)


def test_the_same_seed_gives_the_same():
    first, second, other = (
        simulate(Poisson(100), service(EXPONENTIAL), None, 1000, seed) for seed in (1, 1, 2)
    )
    assert list(first.latencies) == list(second.latencies) != list(other.latencies)
