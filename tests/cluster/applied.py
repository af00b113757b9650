"""An overlay, applied to a cluster in a namespace that was not there, and gone at the end."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.cluster.kubectl import Cluster, until
from tests.k8s import manifests
from tests.k8s.manifests import Document, of_kind

ROLLOUT_SECONDS, DELETE_SECONDS, FILL_SECONDS = 900, 600, 600
DEPLOYMENT = "deployment/googlenet"
SELECTOR = "app.kubernetes.io/name=googlenet,track=stable"
CLAIM = "googlenet-models"
FILL = "fill-models"


@dataclass(frozen=True)
class Applied:
    """One that is.

    Attributes:
        cluster: where.
        overlay: its name.
        namespace: its own.
        documents: as applied.
    """

    cluster: Cluster
    overlay: str
    namespace: str
    documents: list[Document]

    def __call__(self, *words: object, **options) -> str:
        """`kubectl WORDS…` in the namespace."""
        return self.cluster(f"--namespace={self.namespace}", *words, **options)

    def rolled_out(self) -> None:
        """Wait until all pods are of the newest revision and ready."""
        self("rollout", "status", DEPLOYMENT, f"--timeout={ROLLOUT_SECONDS}s",
             timeout=ROLLOUT_SECONDS + 60)  # fmt: skip

    def template(self) -> Document:
        """What pods are made of now."""
        return json.loads(self("get", DEPLOYMENT, "--output=json"))["spec"]["template"]

    def ready_pods(self) -> list[str]:
        """Those that traffic goes to: neither unready nor going."""
        found = json.loads(self("get", "pods", f"--selector={SELECTOR}", "--output=json"))["items"]
        return sorted(
            pod["metadata"]["name"]
            for pod in found
            if "deletionTimestamp" not in pod["metadata"]
            and any(c["type"] == "Ready" and c["status"] == "True"
                    for c in pod.get("status", {}).get("conditions", []))
        )  # fmt: skip

    def endpoints(self, service: str) -> int:
        """How many addresses a Service has."""
        slices = json.loads(
            self("get", "endpointslices", f"--selector=kubernetes.io/service-name={service}",
                 "--output=json")
        )["items"]  # fmt: skip
        return sum(
            each.get("conditions", {}).get("ready", True)
            for found in slices for each in found.get("endpoints") or []
        )  # fmt: skip


@contextlib.contextmanager
def applied(
    cluster: Cluster, overlay: str, folder: Path, version: Path, access: str | None
) -> Iterator[Applied]:
    """Apply it, give it a model; when the block is left, its namespace is deleted.

    Args:
        cluster: where.
        overlay: a name below k8s/overlays.
        folder: for a copy of the manifests.
        version: a published version's directory.
        access: of the claim in place of its own modes, for clusters whose storage lacks them.
    """
    path = manifests.copy(folder) / "overlays" / overlay
    if access:
        _replace_access(path / "kustomization.yaml", access)
    documents = manifests.build(path)
    (namespace,) = (d["metadata"]["name"] for d in of_kind(documents, "Namespace"))
    if cluster.run("get", "namespace", namespace).returncode == 0:
        pytest.skip(f"namespace {namespace} is there already, and is left alone: delete it first")
    try:
        cluster("apply", "--kustomize", path, timeout=120)
        made = Applied(cluster, overlay, namespace, documents)
        _fill(made, version)
        yield made
    finally:
        cluster.run("delete", "namespace", namespace, f"--timeout={DELETE_SECONDS}s",
                    timeout=DELETE_SECONDS + 60)  # fmt: skip


def _replace_access(file: Path, access: str) -> None:
    content = yaml.safe_load(file.read_text())
    operation = [{"op": "replace", "path": "/spec/accessModes", "value": [access]}]
    content["patches"].append(
        {"target": {"kind": "PersistentVolumeClaim"}, "patch": yaml.safe_dump(operation)}
    )
    file.write_text(yaml.safe_dump(content))


def _fill(made: Applied, version: Path) -> None:
    """Put a version into the claim, by a pod with the server's own image; whole, by one rename."""
    made("apply", "--filename=-", given=json.dumps(_filler(manifests.server(made.documents))))
    until(f"pod {FILL} runs (is the image in the cluster, and has the claim a volume?)",
          lambda: made("get", "pod", FILL, "--output=jsonpath={.status.phase}") == "Running",
          FILL_SECONDS)  # fmt: skip
    made("exec", FILL, "--", "mkdir", "-p", "/models/googlenet")
    made("cp", version, f"{FILL}:/models/googlenet/.copy", timeout=FILL_SECONDS)
    made("exec", FILL, "--", "mv", "/models/googlenet/.copy", f"/models/googlenet/{version.name}")
    made("delete", "pod", FILL, "--grace-period=1", timeout=120)


def _filler(server: Document) -> Document:
    small = {"cpu": "100m", "memory": "128Mi"}
    container = {
        "name": "fill",
        "image": server["image"],
        "imagePullPolicy": server["imagePullPolicy"],
        "command": ["sleep", "3600"],
        "resources": {"requests": small, "limits": small},
        "securityContext": server["securityContext"],
        "volumeMounts": [{"name": "models", "mountPath": "/models"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": FILL},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": CLAIM}}],
        },
    }  # fmt: skip
