"""What the cluster lets into the namespace, and what it makes of the objects that it takes."""

import json

import pytest

from tests.control_plane.conftest import serving
from tests.control_plane.kubectl import KubectlError

pytestmark = pytest.mark.control_plane


@pytest.fixture(scope="module")
def production(kubectl, rendered):
    """One for all, who only look."""
    with serving(kubectl, rendered()) as within:
        yield within


def pod(**security):
    container = {"name": "any", "image": "example.com/any:1", "securityContext": security}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "any", "namespace": "googlenet"},
        "spec": {"containers": [container]},
    }


@pytest.mark.parametrize("security", [{}, {"privileged": True}, {"runAsUser": 0}], ids=json.dumps)
def test_the_namespace_refuses_pods_that_are_not_restricted(kubectl, production, security):
    with pytest.raises(KubectlError, match='violates PodSecurity "restricted'):
        kubectl.apply([pod(**security)])


def test_the_autoscaler_finds_what_it_scales(production):
    """Without a metrics server it knows no load; it can scale, and keeps the least number."""
    scaler = production.get("horizontalpodautoscaler/googlenet")
    conditions = {each["type"]: each["status"] for each in scaler["status"]["conditions"]}
    assert conditions["AbleToScale"] == "True"
    assert scaler["status"]["desiredReplicas"] == 3


def test_the_headless_service_lists_every_ready_replica(production):
    slices = production.items(
        "endpointslices", "--selector=kubernetes.io/service-name=googlenet-grpc"
    )
    addresses = {
        address
        for each in slices
        for endpoint in each["endpoints"]
        if endpoint["conditions"]["ready"]
        for address in endpoint["addresses"]
    }
    pods = production.items("pods")
    assert addresses == {pod["status"]["podIP"] for pod in pods}
    assert len(addresses) == 3
    assert production.get("service/googlenet-grpc")["spec"]["clusterIP"] == "None"


def test_replicas_are_spread_over_zones(kubectl, production):
    zones = {
        node["metadata"]["name"]: node["metadata"]["labels"]["topology.kubernetes.io/zone"]
        for node in kubectl.items("nodes")
    }
    assert {zones[pod["spec"]["nodeName"]] for pod in production.items("pods")} == set("abc")


def test_every_replica_is_of_the_class_guaranteed(production):
    pods = production.items("pods")
    assert {pod["status"]["qosClass"] for pod in pods} == {"Guaranteed"}
