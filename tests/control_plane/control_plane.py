"""etcd, API server, controllers, scheduler and simulated kubelets, on loopback.

All that it writes is in one folder beside the programs: certificates, tokens, etcd's data, logs and
process ids. A start begins with an empty cluster.
"""

import shutil
import socket
import time

from tests.control_plane import credentials, processes, programs
from tests.control_plane.kubectl import Kubectl

FOLDER = programs.CACHE / "state"
SECRETS = FOLDER / "credentials"
KUBECONFIG = SECRETS / "admin.kubeconfig"
ORDER = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")
START_SECONDS = 120.0


def kubectl() -> Kubectl:
    """kubectl of the control plane's own version, as its administrator."""
    return Kubectl(programs.PROGRAMS["kubectl"].path, KUBECONFIG)


def is_up() -> bool:
    """Whether all of it runs."""
    return all(processes.running(name, FOLDER) for name in ORDER)


def up() -> None:
    """Start it anew."""
    down()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    ports = _free_ports(3)
    credentials.write(SECRETS, f"https://127.0.0.1:{ports[2]}")
    for name, flags in _flags(*ports).items():
        processes.start(name, flags, FOLDER)
        _wait_for(name, ports)


def down() -> bool:
    """Stop it, last started first; returns whether there was something to stop."""
    alive = [name for name in reversed(ORDER) if processes.running(name, FOLDER)]
    for name in alive:
        processes.stop(name, FOLDER)
    return bool(alive)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def _flags(client: int, peer: int, api: int) -> dict[str, list[str]]:
    """Each program's, in the order in which they start."""
    etcd, peers = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    accounts = SECRETS / "service-accounts.key"
    limits = ["--kube-api-qps=200", "--kube-api-burst=400"]  # else 20 calls a second
    alone = ["--leader-elect=false", "--secure-port=0"]
    return {
        "etcd": [
            f"--data-dir={FOLDER / 'etcd'}",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            "--unsafe-no-fsync",  # nothing here outlives the machine
            "--log-level=warn",
        ],
        "kube-apiserver": [
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",  # no pod is there to call it
            f"--secure-port={api}",
            f"--tls-cert-file={SECRETS / 'server.crt'}",
            f"--tls-private-key-file={SECRETS / 'server.key'}",
            f"--token-auth-file={SECRETS / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged",  # as clusters do: namespaces say who may not
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={accounts}",
            f"--service-account-signing-key-file={accounts}",
            "--service-cluster-ip-range=10.96.0.0/16",
        ],
        "kube-controller-manager": [
            f"--kubeconfig={SECRETS / 'controller-manager.kubeconfig'}",
            f"--service-account-private-key-file={accounts}",
            f"--root-ca-file={SECRETS / 'ca.crt'}",
            "--use-service-account-credentials",
            "--horizontal-pod-autoscaler-sync-period=2s",  # 15 s by itself; tests wait for it
            *alone,
            *limits,
        ],
        "kube-scheduler": [f"--kubeconfig={SECRETS / 'scheduler.kubeconfig'}", *alone, *limits],
        "kwok": [
            f"--kubeconfig={SECRETS / 'kwok.kubeconfig'}",
            f"--config={programs.HERE / 'kubelet.yaml'}",
            "--manage-all-nodes",
            "--node-lease-duration-seconds=40",  # the kubelet's own
        ],
    }


def _wait_for(name: str, ports: list[int]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(name, ports):
        if processes.running(name, FOLDER) is None:
            raise processes.fail(name, FOLDER, "ended")
        if time.monotonic() > deadline:
            raise processes.fail(name, FOLDER, f"is not ready after {START_SECONDS:.0f} s")
        time.sleep(0.2)


def _answers(name: str, ports: list[int]) -> bool:
    """Whether what starts next can rely on it."""
    match name:
        case "etcd":
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", ports[0])) == 0
        case "kube-apiserver":
            return kubectl().complete("get", "--raw=/readyz").returncode == 0
        case "kube-controller-manager":
            return kubectl().complete("get", "serviceaccount", "default").returncode == 0
    return True  # the scheduler and the kubelets wait for work
