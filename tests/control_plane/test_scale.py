"""A large cluster: 200 nodes, 500 replicas. Prints how long things take."""

import collections
import json
import time

import pytest

from tests.control_plane import nodes
from tests.control_plane.conftest import applied, ready_pods, wait_until, watching
from tests.k8s.manifests import TRAINING, build, of_kind

NODES, REPLICAS = 200, 500
DEPLOYMENT = "deployment/googlenet"
SECONDS = 400.0

pytestmark = [pytest.mark.control_plane, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def large(kubectl):
    """As many nodes as that, with the few that are there already."""
    there = [node for node in kubectl.items("nodes") if "taints" not in node["spec"]]
    added = [nodes.node(number) for number in range(len(there), NODES)]
    started = time.monotonic()
    nodes.create(kubectl, added)
    print(f"{NODES} nodes ready: {time.monotonic() - started:.0f} s for the last {len(added)}")
    yield kubectl
    kubectl("delete", "node", *(node["metadata"]["name"] for node in added))


def hold(kubectl, name, replicas):
    """Have an autoscaler keep a number of replicas."""
    bounds = {"spec": {"minReplicas": replicas, "maxReplicas": replicas}}
    patch = f"--patch={json.dumps(bounds)}"
    kubectl("patch", f"horizontalpodautoscaler/{name}", "--type=merge", patch)


def available(kubectl, name="googlenet"):
    return kubectl.get(f"deployment/{name}")["status"].get("availableReplicas", 0)


def restart(kubectl, *names):
    kubectl("rollout", "restart", *(f"deployment/{name}" for name in names))
    for name in names:
        for _ in range(4):  # a call of kubectl's is bounded
            status = kubectl.complete("rollout", "status", f"deployment/{name}", "--timeout=120s")
            if status.returncode == 0:
                break
        assert status.returncode == 0, status.stderr


def test_five_hundred_replicas_on_two_hundred_nodes(large, production):
    hold(production, "googlenet", REPLICAS)
    ready = wait_until(lambda: ready_pods(production) == REPLICAS, "all are ready", SECONDS)
    print(f"3 to {REPLICAS} replicas: ready in {ready:.0f} s")
    wait_until(lambda: available(production) == REPLICAS, "all are available")

    zones = {
        node["metadata"]["name"]: node["metadata"]["labels"]["topology.kubernetes.io/zone"]
        for node in large.items("nodes")
    }
    placed = [pod["spec"]["nodeName"] for pod in production.items("pods")]
    by_zone = collections.Counter(zones[name] for name in placed)
    by_node = collections.Counter(placed)
    print(f"by zone {sorted(by_zone.values())}, at most {max(by_node.values())} on a node")
    assert max(by_zone.values()) - min(by_zone.values()) <= 2
    assert len(by_node) == NODES
    slices = production.items(
        "endpointslices", "--selector=kubernetes.io/service-name=googlenet-grpc"
    )
    assert sum(len(each["endpoints"]) for each in slices) == REPLICAS

    with watching(production, DEPLOYMENT, "availableReplicas") as serving:
        started = time.monotonic()
        restart(production, "googlenet")
        print(f"rollout of {REPLICAS} replicas: {time.monotonic() - started:.0f} s")
    print(f"available meanwhile: {min(serving.values)} at least, {max(serving.values)} at most")
    assert min(serving.values) == REPLICAS


def test_the_quota_holds_production_at_its_largest(large, rendered):
    """With a canary, a rollout of both, and training: nothing is refused.

    Pods end in 20 s, where the next ones serve in 13 s, as real ones do in a minute and in 40 s.
    """
    documents = rendered(components=("canary", "quota"))
    for deployment in of_kind(documents, "Deployment"):
        deployment["spec"]["template"]["metadata"]["annotations"] = {"simulated-ending": "20s"}
    most = {
        scaler["metadata"]["name"]: scaler["spec"]["maxReplicas"]
        for scaler in of_kind(documents, "HorizontalPodAutoscaler")
    }
    with applied(large, documents) as (within,):
        for name, replicas in most.items():
            hold(within, name, replicas)
        for name, replicas in most.items():
            wait_until(lambda n=name, r=replicas: available(within, n) == r, f"{name} at its most")
        large.apply(build(TRAINING[0]))
        restart(within, *most)
        within("wait", "--for=condition=complete", "--timeout=60s", "job/googlenet-training")
        refused = [
            event["message"]
            for event in within.items("events", "--field-selector=reason=FailedCreate")
        ]
        assert refused == []
        assert sum(most.values()) == ready_pods(within) == 35
