"""Rollouts and rollbacks of the production overlay, applied as k8s/README.md says."""

import pytest

from tests.control_plane.conftest import ready_pods, remove, wait_until, watching
from tests.k8s import manifests

pytestmark = pytest.mark.control_plane

DEPLOYMENT = "deployment/googlenet"
STATUS = ("rollout", "status", DEPLOYMENT, "--timeout=200s")


@pytest.fixture
def checkout(tmp_path):
    """The manifests and what they are made of, to be edited."""
    return manifests.copy(tmp_path)


@pytest.fixture
def production(kubectl, checkout):
    """`kubectl apply -k k8s/overlays/production`, once its three replicas serve."""
    within = kubectl.within("googlenet")
    try:
        apply(kubectl, checkout)
        wait_until(lambda: ready_pods(within) == 3, "three replicas are ready")
        within(*STATUS)
        yield within
    finally:
        remove(kubectl, "googlenet")


def apply(kubectl, checkout):
    kubectl("apply", "--kustomize", checkout / "overlays/production")


def mounted_config(kubectl):
    """The ConfigMap of the files that the servers read."""
    volumes = kubectl.get(DEPLOYMENT)["spec"]["template"]["spec"]["volumes"]
    return next(volume["configMap"]["name"] for volume in volumes if volume["name"] == "config")


def undo(kubectl):
    """kubectl warns that the files now say otherwise, and of nothing else."""
    done = kubectl.complete("rollout", "undo", DEPLOYMENT)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Warning:") == 1
    assert "previously managed with 'kubectl apply'" in done.stderr


def same_as_files(kubectl, checkout):
    """Whether the cluster has what the files say."""
    return kubectl.complete("diff", "--kustomize", checkout / "overlays/production").returncode == 0


def available(kubectl):
    """Follow how many replicas serve."""
    return watching(kubectl, DEPLOYMENT, "availableReplicas")


def test_a_changed_file_is_a_rollout_and_undo_brings_it_back(kubectl, production, checkout):
    before = mounted_config(production)
    file = checkout.parent / "serving/config/cpus/4/batching.config"
    file.write_text(file.read_text() + "# changed\n")
    with available(production) as serving:
        apply(kubectl, checkout)
        production(*STATUS)
        assert mounted_config(production) != before
        undo(production)
        production(*STATUS)
    assert mounted_config(production) == before
    assert production.get("configmap", before)["data"]["batching-4.config"]
    assert min(serving.values) == 3  # never fewer than there were
    assert max(serving.values) <= 4


def test_a_version_that_cannot_be_served_takes_no_replica_away(kubectl, production, checkout):
    """New pods that never become ready: the rollout is given up, and undone."""
    deployment = checkout / "base/server/deployment.yaml"
    (document,) = manifests.read(deployment)
    annotations = document["spec"]["template"]["metadata"].setdefault("annotations", {})
    annotations["simulated-model"] = "missing"
    document["spec"]["progressDeadlineSeconds"] = 20  # 15 minutes by itself
    deployment.write_text(manifests.yaml.safe_dump(document))
    with available(production) as serving:
        apply(kubectl, checkout)
        done = production.complete(*STATUS)
        assert done.returncode == 1
        assert "exceeded its progress deadline" in done.stderr
        undo(production)
        production(*STATUS)
        assert not same_as_files(kubectl, checkout)
        deployment.write_text((manifests.K8S / "base/server/deployment.yaml").read_text())
        apply(kubectl, checkout)  # as is the file, or the next apply would start over
        production(*STATUS)
    assert same_as_files(kubectl, checkout)
    assert set(serving.values) == {3}


def test_the_autoscaler_keeps_its_number_through_an_apply(kubectl, production, checkout):
    """The manifest says no number of replicas, so that an apply in a busy hour takes none away."""
    bounds = '{"spec": {"minReplicas": 7}}'
    production("patch", "horizontalpodautoscaler/googlenet", "--type=merge", f"--patch={bounds}")
    wait_until(lambda: ready_pods(production) == 7, "seven replicas are ready")
    with available(production) as serving:
        apply(kubectl, checkout)  # three at least again; what there is goes down slowly
    assert production.get("hpa/googlenet")["spec"]["minReplicas"] == 3
    assert production.get(DEPLOYMENT)["spec"]["replicas"] == 7
    assert min(serving.values) >= 3
