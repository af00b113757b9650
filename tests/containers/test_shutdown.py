"""SIGTERM under load: what was accepted is answered, and the container ends by itself."""

import time

from tests.containers.load import load


def test_sigterm_under_load_loses_no_request(start_pod, show):
    """The harder case: without preStop, while callers of both know nothing of it.

    What crosses the signal on the wire gets CANCELLED from gRPC's core (grpc/grpc 41785), and the
    client sends it again.
    """
    leaving, staying = start_pod(), start_pod()
    leaving.wait()
    staying.wait()
    addresses = ",".join(pod.address for pod in (leaving, staying))
    with load(f"ipv4:{addresses}", callers=16) as done:
        time.sleep(5)
        before = len(done.answered)
        ended = leaving.end(pre_stop=False)
        moment = time.monotonic()
        time.sleep(5)
    after = done.since(moment)
    assert not done.failed
    assert not done.wrong
    assert before
    assert after
    assert (ended.code, ended.killed) == (0, False)
    show(
        f"SIGTERM to one of two under load: {done}; it ended by itself after "
        f"{ended.seconds:.1f} s with code {ended.code}"
    )


def test_a_pods_end_costs_no_call(start_pod, show):
    """As a rollout does it: not ready, preStop, SIGTERM; callers of the two go on."""
    leaving, staying = start_pod(), start_pod()
    leaving.wait()
    staying.wait()
    addresses = ",".join(pod.address for pod in (leaving, staying))
    with load(f"ipv4:{addresses}") as done:
        time.sleep(2)
        ended = leaving.end()
        time.sleep(2)
    assert not done.failed
    assert not done.wrong
    assert (ended.code, ended.killed) == (0, False)
    show(
        f"a pod deleted under load (preStop, SIGTERM): {done}; "
        f"ended {ended.seconds:.1f} s after SIGTERM"
    )
