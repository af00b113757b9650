import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import applied as applying
from tests.cluster import kubectl
from tests.cluster.applied import Applied
from tests.cluster.kubectl import Cluster
from tests.containers import published
from tests.k8s.manifests import OVERLAYS

CHOSEN = os.environ.get("CLUSTER_OVERLAY", "").split() or OVERLAYS

shown: list[str] = []


def pytest_configure():
    if unknown := sorted(set(CHOSEN) - set(OVERLAYS)):
        raise pytest.UsageError(f"no overlay {', '.join(unknown)}: there are {', '.join(OVERLAYS)}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """All here need a cluster."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture
def show():
    """Say what was seen, at the end of the run."""
    return shown.append


def pytest_terminal_summary(terminalreporter):
    if shown:
        terminalreporter.section("shown")
        for line in shown:
            terminalreporter.line(f"- {line}")


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    return kubectl.cluster()


@pytest.fixture(scope="session")
def version(cluster, tmp_path_factory) -> Path:
    """A published version of GoogLeNet; not made where there is no cluster."""
    return published.make(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", params=CHOSEN)
def applied(request, cluster, version, tmp_path_factory) -> Iterator[Applied]:
    """An overlay, applied."""
    access = os.environ.get("CLUSTER_ACCESS") or None
    folder = tmp_path_factory.mktemp(request.param)
    with applying.applied(cluster, request.param, folder, version, access) as made:
        yield made
