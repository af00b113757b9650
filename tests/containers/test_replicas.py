"""Two replicas, one of which dies under load, and comes back: no call fails."""

import time

import pytest
from tfs_client import Retry

from tests.containers import envoy
from tests.containers.load import load


@pytest.fixture
def two(start_pod):
    pods = [start_pod(), start_pod()]
    for pod in pods:
        pod.wait()
    return pods


def _kill_one(two, done) -> None:
    time.sleep(5)
    two[0].kill()
    time.sleep(10)
    assert two[0].state("ExitCode") == "137"


def test_the_clients_round_robin_outlives_one(two, show):
    with load(f"ipv4:{two[0].address},{two[1].address}") as done:
        _kill_one(two, done)
    assert not done.failed
    assert not done.wrong
    show(f"client's round_robin, one of two killed by SIGKILL under load: {done}; "
         f"longest time without an answer {done.gap:.2f} s")  # fmt: skip


def test_a_list_of_addresses_outlives_one(two, show):
    with load([pod.address for pod in two]) as done:
        _kill_one(two, done)
    assert not done.failed
    assert not done.wrong
    show(f"client with a list of addresses, one of two killed by SIGKILL under load: {done}; "
         f"longest time without an answer {done.gap:.2f} s")  # fmt: skip


def test_envoy_outlives_one(two, show):
    """Callers make each call once: what is made again is Envoy's doing."""
    with (
        envoy.balancing([pod.ports["grpc"] for pod in two]) as proxy,
        load(proxy.address, retry=Retry(attempts=1)) as done,
    ):
        _kill_one(two, done)
        retried = proxy.counter("upstream_rq_retry_success")
    assert not done.failed
    assert not done.wrong
    show(
        f"Envoy {proxy.version}, one of two killed by SIGKILL under load: {done}; "
        f"Envoy sent {retried} again; longest time without an answer {done.gap:.2f} s"
    )
