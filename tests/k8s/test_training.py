"""The Jobs: what pipeline reads and prints is what they say."""

import shutil
import signal
import subprocess
import sys

import pytest

from pipeline import __main__ as stages
from pipeline import local_server, strategy
from tests.conftest import ROOT
from tests.k8s.manifests import K8S, containers, read


@pytest.fixture(scope="module")
def training():
    (job,) = read(K8S / "training/job.yaml")
    return job


@pytest.fixture(scope="module")
def publishing():
    (job,) = read(K8S / "training/publish/job.yaml")
    return job


def environment(job, index):
    """The container's own variables, as Kubernetes expands them."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    values = {}
    for variable in container["env"]:
        value = variable.get("value", "")
        if variable["name"] == "INDEX":
            source = variable["valueFrom"]["fieldRef"]["fieldPath"]
            assert source == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
            value = str(index)
        for name, known in values.items():  # only those above it
            value = value.replace(f"$({name})", known)
        values[variable["name"]] = value
    return values


def test_every_worker_finds_itself_and_all_others(training, monkeypatch):
    (service,) = read(K8S / "training/service.yaml")
    pod, count = training["spec"]["template"], training["spec"]["completions"]
    assert training["spec"]["parallelism"] == count > 1
    assert pod["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["publishNotReadyAddresses"] is True
    (port,) = service["spec"]["ports"]
    expected = [
        f"{training['metadata']['name']}-{i}.{service['metadata']['name']}:{port['port']}"
        for i in range(count)
    ]
    for index in range(count):
        monkeypatch.setenv("TF_CONFIG", environment(training, index)["TF_CONFIG"])
        assert strategy._cluster() == (expected, index)


@pytest.mark.parametrize("file", ["job.yaml", "publish/job.yaml"])
def test_the_stages_take_their_flags_and_see_their_folders(file):
    (job,) = read(K8S / "training" / file)
    for container in containers(job["spec"]["template"]):
        name = container["command"][-1]
        (function,) = (f for f in stages.STAGES if f.__name__ == name)
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        taken = stages.STAGES[function]
        for argument in container["args"]:
            flag, _, value = argument.partition("=")
            assert flag in taken
            assert not value.startswith("/") or "/" + value.split("/")[1] in mounts


def test_preemption_is_no_failure(training, publishing):
    for job in (training, publishing):
        assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
        ignored = job["spec"]["podFailurePolicy"]["rules"][0]
        assert ignored == {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        }
    (stopped,) = (
        rule["onExitCodes"]
        for rule in training["spec"]["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    )
    assert stopped["values"] == [128 + signal.SIGTERM]
    names = [c["name"] for c in containers(training["spec"]["template"])]
    assert stopped["containerName"] in names


def test_publishing_goes_in_order_and_ends_where_the_gate_refuses(publishing):
    order = [c["command"][-1] for c in containers(publishing["spec"]["template"])]
    assert order == ["evaluate", "export", "validate", "publish"]
    (refusal,) = (
        rule for rule in publishing["spec"]["podFailurePolicy"]["rules"]
        if rule["action"] == "FailJob"
    )  # fmt: skip
    assert refusal["onExitCodes"] == {
        "containerName": "validate", "operator": "In", "values": [1]
    }  # fmt: skip


@pytest.mark.slow  # a minute
def test_the_stages_end_in_a_version_that_is_served(publishing, run, tmp_path):
    """The Job's own commands, one after the other, on folders in place of its volumes."""
    shutil.copytree(run.path, tmp_path / "runs/googlenet")
    pod = publishing["spec"]["template"]
    for volume in containers(pod)[0]["volumeMounts"]:
        (tmp_path / volume["mountPath"].strip("/")).mkdir(exist_ok=True)
    for container in containers(pod):
        _, *command = container["command"]
        arguments = [argument.replace("=/", f"={tmp_path}/") for argument in container["args"]]
        done = subprocess.run(
            [sys.executable, *command, *arguments],
            cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    with local_server.serving(tmp_path / "models") as client:
        assert client.status()[0].version == 1
