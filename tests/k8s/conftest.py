import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.k8s import manifests
from tests.k8s.manifests import CASES, Document
from tests.serving.processes import serving

WARM = ROOT / "tests/serving/conformance/models/warm"


@pytest.fixture(scope="session")
def rendered(tmp_path_factory) -> Callable[..., list[Document]]:
    """What an overlay with some components applies."""
    done: dict[tuple[str, tuple[str, ...]], list[Document]] = {}

    def render(overlay: str, components: tuple[str, ...] = ()) -> list[Document]:
        if (overlay, components) not in done:
            k8s = manifests.copy(tmp_path_factory.mktemp("manifests"))
            folder = manifests.with_components(k8s, overlay, components)
            done[overlay, components] = manifests.build(folder)
        return done[overlay, components]

    return render


@pytest.fixture(
    scope="session",
    params=[None, *CASES, *manifests.TRAINING],
    ids=lambda case: "base" if case is None else _name(case),
)
def documents(request, rendered) -> list[Document]:
    """Each thing that can be applied; first the base alone, which needs no kubectl."""
    if request.param is None:
        return manifests.raw_base()
    if isinstance(request.param, tuple):
        return rendered(*request.param)
    return manifests.build(request.param) + _applied_before(request.param, rendered)


def _applied_before(folder: Path, rendered) -> list[Document]:
    """What Jobs rely on: production's volume and account, and for publishing training's volume."""
    kinds = ("PersistentVolumeClaim", "ServiceAccount")
    before = manifests.of_kind(rendered("production"), *kinds)
    if folder.name == "publish":
        before += manifests.of_kind(manifests.build(folder.parent), *kinds)
    return before


def _name(case) -> str:
    if not isinstance(case, tuple):
        return case.name
    overlay, components = case
    return "-".join((overlay, *components))


@dataclass(frozen=True)
class Served:
    """The embedded server, with a model that has warm-up requests under the name `googlenet`.

    Attributes:
        repository: its base path, to take the version away from.
        address: of its REST API.
    """

    repository: Path
    address: str

    def get(self, path: str, body: bytes | None = None) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.address + path, body, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture
def served(tmp_path) -> Iterator[Served]:
    """A server with the base's own flags, but for ports, folders and the container's CPUs."""
    shutil.copytree(WARM, tmp_path / "models/googlenet")
    config = ROOT / "serving/config"
    models = (config / "models.config").read_text().replace('"/models/', f'"{tmp_path}/models/')
    (tmp_path / "models.config").write_text(models)
    flags = []
    for argument in manifests.server(manifests.raw_base())["args"]:
        name, _, value = argument.partition("=")
        if name == "--model_config_file":
            value = str(tmp_path / "models.config")
        elif name == "--file_system_poll_wait_seconds":
            value = "1"
        value = value.replace("batching-$(CPU_LIMIT)", "cpus/2/batching")
        value = value.replace("/etc/googlenet", str(config)).replace("$(CPU_LIMIT)", "2")
        if "port" not in name:
            flags.append(f"{name}={value}")
    with serving(*flags, rest=True) as started:
        yield Served(tmp_path / "models/googlenet", f"http://localhost:{started.rest_port}")
