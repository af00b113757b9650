"""Every overlay × component on a real API server: validated, completed, admitted, and run."""

import json

import pytest

from tests.control_plane.conftest import applied, ready_pods, wait_until
from tests.k8s.manifests import CASES, OVERLAYS, of_kind

pytestmark = pytest.mark.control_plane

COMPONENTS = sorted({components for _, components in CASES})


def differences(given, live, path=""):
    """Where the server has something else than what it was given; what it adds is its own."""
    if isinstance(given, dict) and isinstance(live, dict):
        for name, value in given.items():
            yield from differences(value, live.get(name), f"{path}.{name}")
    elif isinstance(given, list) and isinstance(live, list) and len(given) == len(live):
        for i, pair in enumerate(zip(given, live, strict=True)):
            yield from differences(*pair, f"{path}[{i}]")
    elif given != live:
        yield f"{path}: {given!r} became {live!r}"


@pytest.mark.parametrize("components", COMPONENTS, ids=lambda names: "-".join(names) or "none")
def test_the_server_takes_it_as_it_is_and_its_pods_run(kubectl, rendered, components):
    overlays = [overlay for overlay in OVERLAYS if (overlay, components) in CASES]
    sets = [rendered(overlay, components) for overlay in overlays]
    with applied(kubectl, *sets) as namespaces:
        for documents, within in zip(sets, namespaces, strict=True):
            assert list(changed(kubectl, documents)) == []
            wanted = sum(
                scaler["spec"]["minReplicas"]
                for scaler in of_kind(documents, "HorizontalPodAutoscaler")
            )
            wait_until(lambda w=within, n=wanted: ready_pods(w) == n, f"{wanted} in {within}")
            for claim in within.items("persistentvolumeclaims"):
                assert claim["status"]["phase"] == "Bound"
        for documents in sets:  # an apply of the same is no change
            assert (
                kubectl.complete(
                    "diff", "--server-side", "--filename=-", given=listed(documents)
                ).returncode
                == 0
            )


def listed(documents):
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})


def changed(kubectl, documents):
    for document in documents:
        metadata = document["metadata"]
        group = document["apiVersion"].rpartition("/")[0]
        kind = ".".join(filter(None, (document["kind"], group)))
        live = kubectl.within(metadata.get("namespace", "")).get(kind, metadata["name"])
        for difference in differences(document, live):
            yield f"{kind} {metadata['name']}{difference}"
