"""A canary's way through the cluster, by the commands of k8s/README.md."""

import re
import subprocess
import sys

import pytest

from tests.control_plane.conftest import ready_pods, remove, wait_until
from tests.k8s import manifests

pytestmark = pytest.mark.control_plane

STABLE, CANARY = "deployment/googlenet", "deployment/googlenet-canary"
ROUTE = "grpcroutes.gateway.networking.k8s.io/googlenet"


@pytest.fixture
def production(kubectl):
    """The namespace, which goes at the end."""
    yield kubectl.within("googlenet")
    remove(kubectl, "googlenet")


@pytest.fixture
def change(kubectl, tmp_path):
    """`make canary-…` on a copy of the manifests."""
    checkout = manifests.copy(tmp_path)
    overlay = manifests.with_components(checkout, "production", ("canary",))

    def run(*words):
        tracks = checkout / "components/canary/tracks.py"
        subprocess.run([sys.executable, tracks, *words], check=True, capture_output=True)
        kubectl("apply", "--kustomize", overlay)

    return run


def state(kubectl):
    """The version each track is told to serve, and the share of the calls it gets."""
    told = {}
    for deployment in (STABLE, CANARY):
        volumes = kubectl.get(deployment)["spec"]["template"]["spec"]["volumes"]
        (config,) = (volume for volume in volumes if volume["name"] == "config")
        name = (
            config["configMap"]["name"]
            if "configMap" in config
            else config["projected"]["sources"][1]["configMap"]["name"]
        )
        models = kubectl.get("configmap", name)["data"]["models.config"]
        (version,) = re.findall(r"versions:\s+(\d+)", models)
        told[deployment] = int(version)
    weights = [each["weight"] for each in kubectl.get(ROUTE)["spec"]["rules"][0]["backendRefs"]]
    return told[STABLE], told[CANARY], weights


def generations(kubectl):
    return [kubectl.get(name)["metadata"]["generation"] for name in (STABLE, CANARY)]


def test_start_promote_and_roll_back(production, change):
    change("start", "2", "5")
    wait_until(lambda: ready_pods(production) == 4, "three stable replicas and a canary are ready")
    before, _, _ = state(production)
    assert state(production) == (before, 2, [95, 5])
    rolled = generations(production)
    change("start", "2", "20")  # weights alone: no pod is replaced
    assert state(production) == (before, 2, [80, 20])
    assert generations(production) == rolled
    change("promote")
    assert state(production) == (2, 2, [100, 0])
    production("rollout", "status", STABLE, "--timeout=200s")
    assert production.complete("rollout", "undo", STABLE).returncode == 0
    production("rollout", "status", STABLE, "--timeout=200s")
    assert state(production) == (before, 2, [100, 0])
    change("rollback")  # the files still say that version 2 is stable
    assert state(production) == (2, 2, [100, 0])
