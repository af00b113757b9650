import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.control_plane import control_plane
from tests.control_plane.kubectl import Document, Kubectl
from tests.k8s import manifests

WAIT_SECONDS = 60.0


def wait_until(holds: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> float:
    """Returns how many seconds it took."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < seconds, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.25)
    return time.monotonic() - started


@pytest.fixture(scope="session")
def kubectl() -> Kubectl:
    """For the cluster."""
    if not control_plane.is_up():
        pytest.skip("no control plane runs: `make cluster-up` starts one")
    return control_plane.kubectl()


@pytest.fixture(scope="session")
def rendered(tmp_path_factory) -> Callable[..., list[Document]]:
    """What an overlay with some components applies; documents of the caller's own."""

    def render(overlay: str = "production", components: tuple[str, ...] = ()) -> list[Document]:
        k8s = manifests.copy(tmp_path_factory.mktemp("manifests"))
        return manifests.build(manifests.with_components(k8s, overlay, components))

    return render


def namespace_of(documents: list[Document]) -> str:
    (namespace,) = manifests.of_kind(documents, "Namespace")
    return namespace["metadata"]["name"]


def ready_pods(kubectl: Kubectl, labels: str = "app.kubernetes.io/component=server") -> int:
    """How many pods that stay are ready."""
    return sum(
        condition["type"] == "Ready" and condition["status"] == "True"
        for pod in kubectl.items("pods", f"--selector={labels}")
        if "deletionTimestamp" not in pod["metadata"]
        for condition in pod["status"].get("conditions", ())
    )


@contextlib.contextmanager
def applied(kubectl: Kubectl, *sets: list[Document]) -> Iterator[list[Kubectl]]:
    """Overlays side by side, on the cluster; yields kubectl for the namespace of each."""
    namespaces = [namespace_of(documents) for documents in sets]
    try:
        for documents in sets:
            kubectl.apply(documents)
        yield [kubectl.within(namespace) for namespace in namespaces]
    finally:
        remove(kubectl, *namespaces)


def remove(kubectl: Kubectl, *namespaces: str) -> None:
    """Delete namespaces; pods first, for which a namespace waits longer than they take."""
    for name in namespaces:
        workloads = ("deployments,jobs", "--all", "--cascade=foreground")
        kubectl.within(name)("delete", *workloads)
    kubectl("delete", "namespace", "--ignore-not-found", *namespaces)


@contextlib.contextmanager
def serving(kubectl: Kubectl, documents: list[Document]) -> Iterator[Kubectl]:
    """An overlay of three replicas, once they are ready."""
    with applied(kubectl, documents) as (within,):
        wait_until(lambda: ready_pods(within) == 3, "three replicas are ready")
        yield within


@pytest.fixture
def production(kubectl, rendered) -> Iterator[Kubectl]:
    """The production overlay, of the test's own."""
    with serving(kubectl, rendered()) as within:
        yield within


@dataclass(frozen=True)
class Watched:
    """Values that something in the cluster has had.

    Attributes:
        values: one after the other; filled when the watch ends.
    """

    values: list[int]


@contextlib.contextmanager
def watching(kubectl: Kubectl, resource: str, field: str) -> Iterator[Watched]:
    """Follow a number in an object's status, every change of it; none counts as 0."""
    watched = Watched([])
    template = f'--output=go-template={{{{or .status.{field} 0}}}}{{{{"\\n"}}}}'
    process = kubectl.start("get", resource, "--watch", template)
    try:
        yield watched
        time.sleep(1)  # what changed last is on its way
    finally:
        process.terminate()
        lines, _ = process.communicate()
        watched.values.extend(map(int, lines.split()))
