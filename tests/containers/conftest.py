import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tfs_client.bench import machine
from tfs_client.bench.servers import free_port

from tests.containers import engine as engines
from tests.containers import images, kubelet, published
from tests.containers.engine import Engine
from tests.containers.kubelet import Pod
from tests.containers.pod_spec import Place
from tests.k8s import manifests
from tests.k8s.manifests import Document, of_kind

SECONDS = os.environ.get("MEMORY_SECONDS") or "600"
LEAST_SECONDS, MOST_SECONDS = 60, 86_400

shown: list[str] = []


def pytest_configure():
    if not SECONDS.isdecimal() or not LEAST_SECONDS <= int(SECONDS) <= MOST_SECONDS:
        raise pytest.UsageError(
            f"SECONDS={SECONDS}: give a whole number from {LEAST_SECONDS} to {MOST_SECONDS}"
        )


@pytest.fixture(scope="session")
def memory_seconds() -> int:
    """How long the memory test's load lasts."""
    return int(SECONDS)


@pytest.fixture
def show() -> Callable[[str], None]:
    """Say what was seen; it stands at the end of the run, which docs/containers.md quotes."""
    return shown.append


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """All here need an engine, and minutes."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.containers)
            item.add_marker(pytest.mark.timeout(MOST_SECONDS + 1800, func_only=True))


def pytest_terminal_summary(terminalreporter):
    if shown:
        terminalreporter.section("shown")
        found = machine.describe()
        terminalreporter.line(f"{os.cpu_count()} cores, {found['processor']}")
        for line in shown:
            terminalreporter.line(f"- {line}")


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    with engines.engine() as found:
        yield found


@pytest.fixture(scope="session")
def embedded(engine) -> str:
    """The embedded server's image."""
    return images.build(engine, images.FOLDER / "embedded.Dockerfile")


@pytest.fixture(scope="session")
def version(tmp_path_factory) -> Path:
    """A published version of GoogLeNet at its full size."""
    return published.make(tmp_path_factory.mktemp("published"))


@pytest.fixture
def models(version, tmp_path) -> Path:
    """A model repository of a test's own."""
    shutil.copytree(version, tmp_path / "models/googlenet/1")
    return tmp_path / "models"


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    """What `kubectl apply -k k8s/overlays/embedded` applies."""
    return manifests.build(manifests.K8S / "overlays/embedded")


@pytest.fixture
def start_pod(engine, embedded, documents, models, tmp_path) -> Iterator[Callable[..., Pod]]:
    """Start a pod of the Deployment on the test's repository."""
    (deployment,) = of_kind(documents, "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    assert spec["containers"][0]["image"] == embedded
    claims = {claim["metadata"]["name"]: models
              for claim in of_kind(documents, "PersistentVolumeClaim")}  # fmt: skip
    numbers = itertools.count()
    with contextlib.ExitStack() as stack:

        def start() -> Pod:
            folder = tmp_path / f"pod-{next(numbers)}"
            folder.mkdir()
            folder.chmod(0o755)
            place = Place(folder, claims, {"grpc": free_port(), "rest": free_port()})
            return stack.enter_context(kubelet.pod(engine, spec, documents, place))

        yield start
