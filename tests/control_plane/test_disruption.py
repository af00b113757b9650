"""The PodDisruptionBudget while nodes are drained."""

import re

import pytest

from tests.control_plane.conftest import applied, ready_pods, wait_until, watching
from tests.k8s import manifests

pytestmark = pytest.mark.control_plane

DRAIN = ("drain", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s")


@pytest.fixture
def one_node(kubectl):
    """A node that alone takes pods, until others do."""
    names = [node["metadata"]["name"] for node in kubectl.items("nodes")]
    chosen, *others = sorted(name for name in names if name.startswith("node-"))
    kubectl("cordon", *others)
    try:
        yield chosen, others
    finally:
        kubectl("uncordon", *names)


def pods_on(kubectl, node):
    return kubectl.items("pods", f"--field-selector=spec.nodeName={node}")


def test_a_drain_takes_one_replica_at_a_time(kubectl, one_node, production):
    node, others = one_node
    assert len(pods_on(production, node)) == 3
    kubectl("uncordon", *others)
    with watching(production, "poddisruptionbudget/googlenet", "currentHealthy") as healthy:
        done = kubectl.complete(*DRAIN, node)
        assert done.returncode == 0, done.stderr
        wait_until(lambda: ready_pods(production) == 3, "three replicas are ready elsewhere")
    assert pods_on(production, node) == []
    refused = re.findall(r"error when evicting pods/\S+.*disruption budget", done.stderr)
    assert refused  # evictions that had to wait for the one before
    assert min(healthy.values) == 2
    print(f"3 replicas drained one at a time; {len(refused)} evictions refused meanwhile")


def test_replicas_without_a_model_do_not_hold_up_a_drain(kubectl, one_node, rendered):
    node, others = one_node
    documents = rendered()
    (deployment,) = manifests.of_kind(documents, "Deployment")
    deployment["spec"]["template"]["metadata"]["annotations"] = {"simulated-model": "missing"}
    with applied(kubectl, documents) as (within,):
        wait_until(lambda: len(pods_on(within, node)) == 3, "three replicas have a node")
        kubectl("uncordon", *others)
        kubectl(*DRAIN, node)
        assert pods_on(within, node) == []
        assert ready_pods(within) == 0
