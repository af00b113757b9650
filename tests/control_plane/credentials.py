"""Who may talk to the control plane: a certificate of the API server's, and a token a user."""

import csv
import json
import secrets
from pathlib import Path

import trustme

# Name in the kubeconfig's file: (user, groups). Controllers and scheduler have no more than
# Kubernetes's own roles for them.
USERS = {
    "admin": ("admin", "system:masters"),
    "kwok": ("kwok", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
}


def write(folder: Path, address: str) -> None:
    """Certificates, keys, tokens and a kubeconfig for each user, readable by their owner alone."""
    folder.mkdir(mode=0o700)
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(folder / "ca.crt")
    server.private_key_pem.write_to_path(folder / "server.key")
    server.cert_chain_pems[0].write_to_path(folder / "server.crt")
    accounts = authority.issue_cert("service-accounts")  # its key alone is of use
    accounts.private_key_pem.write_to_path(folder / "service-accounts.key")
    with (folder / "tokens.csv").open("w") as file:
        for name, (user, groups) in USERS.items():
            token = secrets.token_urlsafe(32)
            csv.writer(file).writerow([token, user, user, groups])
            (folder / f"{name}.kubeconfig").write_text(_kubeconfig(folder, address, name, token))


def _kubeconfig(folder: Path, address: str, name: str, token: str) -> str:
    """JSON, which is YAML too."""
    cluster = {"server": address, "certificate-authority": str(folder / "ca.crt")}
    context = {"cluster": "simulated", "user": name}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "simulated", "cluster": cluster}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": "simulated", "context": context}],
        "current-context": "simulated",
    }
    return json.dumps(content, indent=2)
