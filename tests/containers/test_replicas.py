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


def _kill_one(two) -> None:
    time.sleep(5)
    two[0].kill()
    time.sleep(10)
    assert two[0].state("ExitCode") == "137"


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("round_robin", lambda one, other: f"ipv4:{one},{other}"),
        ("a list of addresses", lambda *both: list(both)),
    ],
)
def test_the_client_outlives_one(two, show, how, named):
    with load(named(*(pod.address for pod in two))) as done:
        _kill_one(two)
    assert not done.failed
    assert not done.wrong
    show(f"client with {how}, one of two killed by SIGKILL under load: {done}; "
         f"longest time without an answer {done.gap:.2f} s")  # fmt: skip


def test_envoy_outlives_one(two, show):
    """Callers make each call once: what is made again is Envoy's doing."""
    with (
        envoy.balancing([pod.ports["grpc"] for pod in two]) as proxy,
        load(proxy.address, retry=Retry(attempts=1)) as done,
    ):
        _kill_one(two)
        retried = proxy.counter("upstream_rq_retry_success")
    assert not done.failed
    assert not done.wrong
    show(
        f"Envoy {proxy.version}, one of two killed by SIGKILL under load: {done}; "
        f"Envoy sent {retried} again; longest time without an answer {done.gap:.2f} s"
    )
