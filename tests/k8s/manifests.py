"""The manifests as data: as they lie there, and as kustomize renders them.

kustomize needs kubectl, from .venv/k8s (made by `make test-k8s`) or PATH; the rest PyYAML alone.
"""

import itertools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

K8S = ROOT / "k8s"
TOOLS = ROOT / ".venv/k8s/bin"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir())
NEEDS = {"mtls-gateway": ("canary", "mtls"), "queue-autoscaling": ("monitoring",)}
# Beside each with what it needs: what is meant to work together.
TOGETHER = (
    ("canary", "monitoring", "mtls", "mtls-gateway", "queue-autoscaling", "quota"),
    ("image-volume", "gpu", "monitoring", "queue-autoscaling"),
    ("bucket-model", "mtls", "monitoring"),
)
CASES = [
    (overlay, components)
    for overlay, components in itertools.product(
        OVERLAYS, ((), *((*NEEDS.get(name, ()), name) for name in COMPONENTS), *TOGETHER)
    )
    if not (overlay == "embedded" and {"gpu", "bucket-model"} & set(components))  # it has neither
]
TRAINING = [K8S / "training", K8S / "training/publish"]

Document = dict[str, Any]


def tool(name: str) -> str:
    """The path of a program; skips the test where there is none."""
    found = shutil.which(name, path=TOOLS) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: `make test-k8s` brings it")
    return found


def read(path: Path) -> list[Document]:
    """The documents of a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def raw_base() -> list[Document]:
    """The base's documents without kustomize: with the ConfigMap that it would generate."""
    files = [path for path in (K8S / "base").rglob("*.yaml") if path.name != "kustomization.yaml"]
    folder = ROOT / "serving/config"
    (generator,) = read(folder / "kustomization.yaml")[0]["configMapGenerator"]
    sources = dict(
        (*file.split("="), file)[:2] for file in generator["files"]
    )  # name=path, or path
    data = {name: (folder / path).read_text() for name, path in sources.items()}
    config = {"kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data}
    return [config, *(document for path in sorted(files) for document in read(path))]


def build(folder: Path) -> list[Document]:
    """What `kubectl apply -k FOLDER` would apply."""
    command = [tool("kubectl"), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # kustomize warns of fields that will go
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def copy(folder: Path) -> Path:
    """A copy of all that the manifests are made of, for tests to edit; returns its k8s/."""
    shutil.copytree(K8S, folder / "k8s")
    shutil.copytree(ROOT / "serving/config", folder / "serving/config")
    return folder / "k8s"


def with_components(k8s: Path, overlay: str, components: tuple[str, ...]) -> Path:
    """Write the components into an overlay, as a user does; returns its folder."""
    file = k8s / "overlays" / overlay / "kustomization.yaml"
    (content,) = read(file)
    content["components"] = [f"../../components/{name}" for name in components]
    file.write_text(yaml.safe_dump(content))
    return file.parent


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    return [document for document in documents if document["kind"] in kinds]


def pod_template(document: Document) -> Document | None:
    """The pods a workload makes."""
    if document["kind"] in ("Deployment", "Job"):
        return document["spec"]["template"]
    return None


def containers(template: Document) -> list[Document]:
    return template["spec"].get("initContainers", []) + template["spec"]["containers"]


def server(documents: list[Document]) -> Document:
    """The serving container of stable."""
    (deployment,) = (
        d for d in of_kind(documents, "Deployment") if d["metadata"]["labels"]["track"] == "stable"
    )
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return found


def selects(selector: Document | None, labels: Document) -> bool:
    """Whether a label selector, or a Service's plain one, matches."""
    wanted = selector.get("matchLabels", selector) if selector else {}
    return wanted.items() <= labels.items()


def probes(container: Document) -> Iterator[tuple[str, Document]]:
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        if name in container:
            yield name, container[name]["httpGet"]
