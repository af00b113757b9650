"""Every overlay × component, judged by the field's own tools."""

import math
import subprocess

import pytest
import yaml

from tests.conftest import ROOT
from tests.k8s import manifests
from tests.k8s.manifests import CASES, K8S, OVERLAYS, TRAINING, build, of_kind, read, tool

HERE = ROOT / "tests/k8s"
MODEL_SECONDS = 30  # half a minute, as k8s/README.md says: what a new pod needs at least
# What a cluster has only with the operator that brings it; custom_resources.py knows most of them.
OPERATORS = {
    *("Certificate", "Issuer", "PrometheusRule", "ServiceMonitor"),
    *("BackendTLSPolicy", "GRPCRoute", "Gateway"),
}


@pytest.fixture(scope="module")
def folder(rendered, tmp_path_factory):
    """All that can be applied, a file each."""
    folder = tmp_path_factory.mktemp("rendered")
    for overlay, components in CASES:
        name = "-".join((overlay, *components))
        (folder / f"{name}.yaml").write_text(yaml.safe_dump_all(rendered(overlay, components)))
    for path in TRAINING:
        (folder / f"{path.name}.yaml").write_text(yaml.safe_dump_all(build(path)))
    return folder


def run(*command):
    done = subprocess.run(
        [tool(str(command[0])), *map(str, command[1:])],
        capture_output=True, text=True, timeout=200, check=False, cwd=ROOT,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("version", ["1.34", "1.37"])
def test_kubernetes_knows_every_field(folder, version):
    files = sorted(folder.glob("*.yaml"))
    code, said = run("kubernetes-validate", "--strict", "--quiet", "-k", version, *files)
    unknown = [line for line in said.splitlines() if "Couldn't find schema" in line]
    others = [line for line in said.splitlines() if line not in unknown]
    assert (code, others) == (0, [])
    assert {line.split(" for kind ")[1].split()[0] for line in unknown} == OPERATORS


def test_operators_know_every_field(folder):
    tool("checkov")  # from the environment in which the models are, too
    code, said = run(manifests.TOOLS / "python", HERE / "custom_resources.py", folder)
    assert code == 0, said
    assert int(said.split()[0]) > 50


def test_checkov_has_nothing_to_say(folder):
    code, said = run(
        "checkov", "--skip-download", "--quiet", "--compact", "--framework", "kubernetes",
        "--directory", folder,
    )  # fmt: skip
    assert code == 0, said


def test_yamllint_has_nothing_to_say():
    config = HERE / "yamllint.yaml"
    code, said = run("yamllint", "--strict", "-c", config, K8S, ROOT / "serving", HERE)
    assert code == 0, said


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_hold_only_differences(overlay):
    folder = K8S / "overlays" / overlay
    (content,) = read(folder / "kustomization.yaml")
    assert set(content) == {
        "apiVersion", "kind", "namespace", "resources", "components", "patches"
    }  # fmt: skip
    assert content["resources"] == ["../../base"]
    assert all((folder / component).is_dir() for component in content["components"])
    patches = {patch["path"] for patch in content["patches"]}
    assert {path.name for path in folder.iterdir()} == patches | {"kustomization.yaml"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_have_namespaces_of_their_own(overlay, rendered):
    (namespace,) = of_kind(rendered(overlay), "Namespace")
    expected = "googlenet" if overlay == "production" else f"googlenet-{overlay}"
    assert namespace["metadata"]["name"] == expected
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_a_changed_file_is_a_rollout(tmp_path):
    def mounted():
        documents = build(k8s / "overlays/production")
        (deployment,) = of_kind(documents, "Deployment")
        volumes = deployment["spec"]["template"]["spec"]["volumes"]
        return next(v["configMap"]["name"] for v in volumes if v["name"] == "config")

    k8s = manifests.copy(tmp_path)
    before = mounted()
    file = tmp_path / "serving/config/cpus/4/batching.config"
    file.write_text(file.read_text() + "# changed\n")
    assert mounted() != before


def test_patches_change_what_they_are_for(rendered):
    production, embedded = rendered("production"), rendered("embedded")
    assert manifests.server(production)["resources"]["limits"] == {"cpu": "4", "memory": "4Gi"}
    assert manifests.server(embedded)["command"] == ["python", "-m", "serving"]
    assert manifests.server(production)["args"] == manifests.server(embedded)["args"]


def test_the_quota_holds_what_production_may_grow_to(rendered):
    """With a canary, a rollout of both, and training.

    Pods that are ending count as long as they are there: as many of a rollout's waves as begin
    meanwhile.
    """
    documents = rendered("production", ("canary",)) + build(TRAINING[0])
    (quota,) = of_kind(rendered("production", ("quota",)), "ResourceQuota")
    asked = {"cpu": 0, "memory": 0, "pods": 0}
    for document in documents:
        template = manifests.pod_template(document)
        if template is None:
            continue
        pods = document["spec"].get("completions")
        if pods is None:
            (most,) = (
                scaler["spec"]["maxReplicas"]
                for scaler in of_kind(documents, "HorizontalPodAutoscaler")
                if scaler["spec"]["scaleTargetRef"]["name"] == document["metadata"]["name"]
            )
            surge = document["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
            wave = math.ceil(most * int(surge.removesuffix("%")) / 100)
            (container,) = template["spec"]["containers"]
            ending = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            starting = MODEL_SECONDS + document["spec"]["minReadySeconds"]
            pods = most + wave * (1 + math.ceil(ending / starting))
        (container,) = template["spec"]["containers"]
        asked["cpu"] += pods * int(container["resources"]["limits"]["cpu"])
        asked["memory"] += pods * int(container["resources"]["limits"]["memory"][:-2])
        asked["pods"] += pods
    hard = quota["spec"]["hard"]
    assert (hard["limits.cpu"], hard["requests.cpu"]) == (str(asked["cpu"]),) * 2
    assert (hard["limits.memory"], hard["requests.memory"]) == (f"{asked['memory']}Gi",) * 2
    assert int(hard["pods"]) >= asked["pods"]
