"""Each overlay on the cluster: it rolls out, answers, scales, and is rolled back under traffic."""

import contextlib
import time

import pytest

from tests.cluster.applied import DEPLOYMENT
from tests.cluster.kubectl import until
from tests.containers.load import Load, load
from tests.k8s.manifests import of_kind, server

pytestmark = pytest.mark.timeout(3600)

PORT = 8500
SCALE_SECONDS, BAD_SECONDS = 600, 60


@contextlib.contextmanager
def traffic(applied, seconds: float = 0.0):
    """Callers of all pods that are ready now, each through a forwarded port."""
    with contextlib.ExitStack() as stack:
        addresses = [
            stack.enter_context(applied.cluster.forwarded(applied.namespace, pod, PORT))
            for pod in applied.ready_pods()
        ]
        with load(addresses, callers=4) as done:
            yield done
            time.sleep(seconds)


def _answered(done: Load) -> None:
    assert done.answered
    assert not done.failed
    assert not done.wrong


def test_it_rolls_out_and_answers(applied, show):
    started = time.monotonic()
    applied.rolled_out()
    seconds = time.monotonic() - started
    pods = applied.ready_pods()
    (scaler,) = of_kind(applied.documents, "HorizontalPodAutoscaler")
    assert len(pods) >= scaler["spec"]["minReplicas"]
    until("every ready pod is an address of the Service",
          lambda: applied.endpoints("googlenet-grpc") == len(applied.ready_pods()), 60)  # fmt: skip
    with traffic(applied, seconds=20) as done:
        pass
    _answered(done)
    show(f"{applied.overlay} on {applied.cluster.version}: {len(pods)} pods ready {seconds:.0f} s "
         f"after the model was there; {done}")  # fmt: skip


def test_it_scales(applied, show):
    """By the autoscaler's own least number, since its metrics need a metrics server."""
    applied.rolled_out()
    before = len(applied.ready_pods())
    patch = f'{{"spec": {{"minReplicas": {before + 1}}}}}'
    applied("patch", "horizontalpodautoscaler/googlenet", f"--patch={patch}")
    started = time.monotonic()
    until(f"{before + 1} pods are ready", lambda: len(applied.ready_pods()) > before, SCALE_SECONDS)
    with traffic(applied, seconds=10) as done:
        pass
    _answered(done)
    show(f"{applied.overlay}: one more pod ready after {time.monotonic() - started:.0f} s; {done}")


def test_a_bad_rollout_costs_no_call_and_is_undone(applied, show):
    applied.rolled_out()
    template, pods = applied.template(), applied.ready_pods()
    image = f"{server(applied.documents)['image']}-is-not-there"
    with traffic(applied) as done:
        applied("set", "image", DEPLOYMENT, f"server={image}")
        time.sleep(BAD_SECONDS)
        assert set(pods) <= set(applied.ready_pods())
        applied("rollout", "undo", DEPLOYMENT)
        applied.rolled_out()
        assert set(pods) <= set(applied.ready_pods())
    _answered(done)
    assert applied.template()["spec"] == template["spec"]
    show(
        f"{applied.overlay}: a rollout of an image that is not there, undone under traffic; {done}"
    )
