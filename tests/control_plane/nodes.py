"""What a cluster's owner brings: nodes in three zones, and a storage class of shared volumes."""

from tests.control_plane.kubectl import Document, Kubectl

ZONES = ("a", "b", "c")
STORAGE: Document = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {
        "name": "shared",
        "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
    },
    "provisioner": "simulated.example.com",  # kubelet.yaml
    "reclaimPolicy": "Delete",
    "volumeBindingMode": "Immediate",
}
GPU = "nvidia.com/gpu"


def node(number: int, gpus: int = 0) -> Document:
    """16 CPUs and 64 GiB; one with GPUs keeps everything else off."""
    name = f"{'gpu' if gpus else 'node'}-{number:03}"
    resources = {"cpu": "16", "memory": "64Gi", "pods": "110", "ephemeral-storage": "100Gi"}
    if gpus:
        resources[GPU] = str(gpus)
    labels = {
        "kubernetes.io/hostname": name,
        "topology.kubernetes.io/zone": ZONES[number % len(ZONES)],
    }
    taints = [{"key": GPU, "value": "present", "effect": "NoSchedule"}]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": taints if gpus else []},
        "status": {"allocatable": resources, "capacity": resources},
    }


def create(kubectl: Kubectl, documents: list[Document]) -> None:
    """Make nodes, and wait until their kubelets say that they are ready."""
    kubectl.create(documents)  # an apply would leave out the status
    names = [document["metadata"]["name"] for document in documents]
    kubectl("wait", "--for=condition=Ready", "--timeout=120s", "node", *names)


def furnish(kubectl: Kubectl) -> None:
    """A small cluster: six nodes, and three with four GPUs each."""
    kubectl.apply([STORAGE])
    create(kubectl, [*(node(i) for i in range(6)), *(node(i, gpus=4) for i in range(3))])
