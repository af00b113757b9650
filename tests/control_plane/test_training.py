"""Training and publishing as Jobs, beside production."""

import pytest

from tests.control_plane.conftest import wait_until
from tests.k8s.manifests import TRAINING, build

pytestmark = pytest.mark.control_plane

COMPLETE = ("wait", "--for=condition=complete", "--timeout=60s")


def test_training_and_publishing_complete(kubectl, production):
    training, publish = map(build, TRAINING)
    kubectl.apply(training)
    pods = "--selector=app.kubernetes.io/component=training"
    wait_until(lambda: len(production.items("pods", pods)) == 2, "two workers are there")
    workers = production.items("pods", pods)
    production(*COMPLETE, "job/googlenet-training")
    # What TF_CONFIG calls them: <job>-<index>.<service>.
    names = {f"{pod['spec']['hostname']}.{pod['spec']['subdomain']}" for pod in workers}
    (container,) = workers[0]["spec"]["containers"]
    (tf_config,) = (each["value"] for each in container["env"] if each["name"] == "TF_CONFIG")
    assert all(f'"{name}:2222"' in tf_config for name in names)
    assert len(names) == 2
    kubectl.apply(publish)
    production(*COMPLETE, "job/googlenet-publish")
