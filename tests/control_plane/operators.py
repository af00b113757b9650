"""The resources that operators bring, by the definitions that they publish in their modules."""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.control_plane import programs
from tests.control_plane.errors import ControlPlaneError
from tests.control_plane.kubectl import Kubectl


@dataclass(frozen=True)
class Operator:
    """One of them.

    Attributes:
        module: that holds the definitions.
        version: of it.
        folder: of the definitions.
        files: those that the manifests use.
    """

    module: str
    version: str
    folder: str
    files: tuple[str, ...]


def gateway_api(version: str, *kinds: str) -> Operator:
    files = tuple(f"gateway.networking.k8s.io_{kind}.yaml" for kind in kinds)
    return Operator("sigs.k8s.io/gateway-api", version, "config/crd/standard", files)


# The least versions that k8s/README.md asks for; the newest ones beside them.
GATEWAY_API_CANARY = gateway_api("v1.1.1", "gateways", "grpcroutes")
GATEWAY_API = gateway_api("v1.5.1", "gateways", "grpcroutes", "backendtlspolicies")
GATEWAY_API_NEWEST = gateway_api("v1.6.3", "gateways", "grpcroutes", "backendtlspolicies")
CERT_MANAGER = Operator(
    "github.com/cert-manager/cert-manager",
    "v1.21.2",
    "deploy/crds",
    ("cert-manager.io_certificates.yaml", "cert-manager.io_issuers.yaml"),
)
PROMETHEUS_OPERATOR = Operator(
    "github.com/prometheus-operator/prometheus-operator",
    "v0.85.0",
    "example/prometheus-operator-crd",
    ("monitoring.coreos.com_prometheusrules.yaml", "monitoring.coreos.com_servicemonitors.yaml"),
)
ALL = (GATEWAY_API, CERT_MANAGER, PROMETHEUS_OPERATOR)


def install(kubectl: Kubectl, *operators: Operator) -> None:
    """Define their resources, in place of other versions' definitions."""
    for operator in operators:
        folder = _download(operator) / operator.folder
        for file in operator.files:
            kubectl("apply", "--server-side", "--force-conflicts", f"--filename={folder / file}")
    kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")


def _download(operator: Operator) -> Path:
    """The module's folder in Go's cache."""
    with tempfile.TemporaryDirectory() as elsewhere:  # no go.mod there
        done = subprocess.run(
            [programs.go(), "mod", "download", "-json", f"{operator.module}@{operator.version}"],
            capture_output=True, text=True, check=False, cwd=elsewhere, env=os.environ,
        )  # fmt: skip
    try:
        return Path(json.loads(done.stdout)["Dir"])
    except (ValueError, KeyError):
        said = done.stdout + done.stderr
        raise ControlPlaneError(f"go mod download of {operator.module} failed: {said}") from None
