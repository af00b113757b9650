"""k8s/README.md: what it names is there, and its examples work."""

import re
import shlex

import yaml
from tfs_client.__main__ import _parser

from tests.conftest import ROOT
from tests.k8s import manifests
from tests.k8s.manifests import COMPONENTS, K8S, NEEDS, OVERLAYS, build, of_kind, read

README = (K8S / "README.md").read_text()
CODE = re.findall(r"```sh\n(.*?)```", README, re.S)


(TRACK,) = read(K8S / "components/canary/track/kustomization.yaml")
CANARY = TRACK["nameSuffix"]


def rows(heading):
    """First cells of a table."""
    table = README.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    return re.findall(r"^\| `([^`]+)` \|(.*)", table, re.M)


def test_every_overlay_and_component_is_in_its_table():
    assert sorted(name for name, _ in rows("overlay")) == OVERLAYS
    listed = dict(rows("component"))
    assert sorted(listed) == COMPONENTS
    for name, needs in NEEDS.items():
        assert all(f"`{needed}`" in listed[name].split("|")[0] for needed in needs)


def test_commands_name_what_is_there():
    commands = "\n".join(CODE) + "\n".join(re.findall(r"`(kubectl [^`]*)`", README))
    for folder in re.findall(r"apply -k (\S+)", commands):
        assert (ROOT / folder / "kustomization.yaml").exists()
    jobs = [d for path in (K8S / "training").rglob("job.yaml") for d in read(path)]
    there = {f"job/{job['metadata']['name']}" for job in jobs}
    there |= {"deployment/googlenet", f"deployment/googlenet{CANARY}"}
    assert set(re.findall(r"\b(?:job|deployment)/[\w-]+", commands)) == there
    targets = re.findall(r"^make ([\w-]+)|`make ([\w-]+)`", README, re.M)
    for target in {first or second for first, second in targets}:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target


def test_the_canarys_check_reaches_both_tracks():
    """By forwarded ports, metrics on the one after gRPC's, and by the Services' names."""
    (deployment,) = read(K8S / "base/server/deployment.yaml")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["rest"] == ports["grpc"] + 1
    (block,) = (code for code in CODE if "port-forward" in code)
    addresses = re.findall(r"(?:STABLE|CANARY)=localhost:(\d+)", block)
    forwarded = re.findall(r"port-forward deployment/(\S+) (.*) &", block)
    assert [name for name, _ in forwarded] == ["googlenet", f"googlenet{CANARY}"]
    for (_, pairs), address in zip(forwarded, addresses, strict=True):
        local = dict(
            pair.split(":")[::-1] if ":" in pair else (pair, pair) for pair in pairs.split()
        )
        assert local[str(ports["grpc"])] == address
        assert local[str(ports["rest"])] == str(int(address) + 1)
    (service,) = read(K8S / "base/server/service-grpc.yaml")
    assert service["spec"]["clusterIP"] == "None"  # its name is all pods
    (command,) = (code for code in CODE if code.startswith("tfs canary"))
    name = service["metadata"]["name"]
    names = [f"{each}.googlenet:{ports['grpc']}" for each in (name, f"{name}{CANARY}")]
    options = _parser().parse_args(shlex.split(command)[1:])
    assert [options.stable, options.canary] == names
    (flags,) = re.findall(r'FLAGS="(.*)"', block)
    (tls,) = re.findall(r"add `(--ca [^`]*)` to", README)
    options = _parser().parse_args(["canary", *names, *flags.split(), *tls.split()])
    (certificate,) = (
        d for d in read(K8S / "components/mtls/certificates.yaml")
        if d["metadata"]["name"] == "googlenet-server"
    )  # fmt: skip
    assert options.authority in certificate["spec"]["dnsNames"]


def test_the_example_of_components_renders(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", README, re.S)
    paths = yaml.safe_load(example)["components"]
    names = tuple(path.removeprefix("../../components/") for path in paths)
    k8s = manifests.copy(tmp_path)
    assert of_kind(build(manifests.with_components(k8s, "production", names)), "GRPCRoute")


def test_numbers_are_the_manifests(rendered):
    for overlay, text in rows("overlay"):
        if numbers := re.search(r"(\d+) to (\d+) replicas of (\d+) CPUs", text):
            documents = rendered(overlay)
            (scaler,) = of_kind(documents, "HorizontalPodAutoscaler")
            limits = manifests.server(documents)["resources"]["limits"]
            found = (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"], limits["cpu"])
            assert tuple(map(str, found)) == numbers.groups()
    (quota,) = read(K8S / "components/quota/resource-quota.yaml")
    (cpus,) = re.findall(r"canary and training: (\d+) CPUs", README)
    assert quota["spec"]["hard"]["limits.cpu"] == cpus
