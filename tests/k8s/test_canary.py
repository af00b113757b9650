"""The canary: its file, its versions in what both tracks serve, and its weights."""

import importlib.util
import shutil
import subprocess
import sys

import pytest

from serving import models_config
from tests.conftest import ROOT
from tests.k8s import manifests
from tests.k8s.manifests import K8S, build, of_kind

FOLDER = K8S / "components/canary"


@pytest.fixture
def tracks():
    spec = importlib.util.spec_from_file_location("tracks", FOLDER / "tracks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "tracks.env"
    file.write_text("STABLE_VERSION=3\nSTABLE_WEIGHT=100\nCANARY_VERSION=3\nCANARY_WEIGHT=0\n")
    return file


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        (["start 7"], (3, 95, 7, 5)),
        (["start 7 50"], (3, 50, 7, 50)),
        (["start 7", "promote"], (7, 100, 7, 0)),
        (["start 7", "rollback"], (3, 100, 7, 0)),
    ],
)
def test_commands_change_the_file(tracks, file, commands, expected):
    for command in commands:
        assert tracks.main(command.split(), file) == 0
    assert tuple(tracks.read(file).values()) == expected
    assert list(tracks.read(file)) == list(tracks.read())


@pytest.mark.parametrize(
    "command", ["", "start", "start x", "start 0", "start 7 100", "promote 7", "go"]
)
def test_mistakes_change_nothing(tracks, file, command, capsys):
    before = file.read_text()
    assert tracks.main(command.split(), file) == 2
    assert file.read_text() == before
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_each_track_serves_its_version_and_gets_its_share(tmp_path, tracks):
    k8s = manifests.copy(tmp_path)
    tracks.main(["start", "41", "20"], k8s / "components/canary/tracks.env")
    folder = manifests.with_components(k8s, "production", ("canary",))
    tracks.main(["promote"], k8s / "components/canary/tracks.env")
    assert served(build(folder), tmp_path) == {"stable": [41], "canary": [41]}
    tracks.main(["start", "52", "20"], k8s / "components/canary/tracks.env")
    documents = build(folder)
    assert served(documents, tmp_path) == {"stable": [41], "canary": [52]}
    (route,) = of_kind(documents, "GRPCRoute")
    (rule,) = route["spec"]["rules"]
    weights = {backend["name"]: backend["weight"] for backend in rule["backendRefs"]}
    assert weights == {"googlenet-grpc": 80, "googlenet-grpc-canary": 20}
    assert not [m for m in of_kind(documents, "ConfigMap") if "tracks" in m["metadata"]["name"]]


def served(documents, folder):
    """Track -> versions that its models.config asks for."""
    maps = {m["metadata"]["name"]: m["data"] for m in of_kind(documents, "ConfigMap")}
    found = {}
    for deployment in of_kind(documents, "Deployment"):
        volumes = {v["name"]: v for v in deployment["spec"]["template"]["spec"]["volumes"]}
        config = volumes["config"]
        (text,) = (
            maps[source["configMap"]["name"]]["models.config"]
            for source in config.get("projected", {}).get("sources", [config])
            if "items" not in source["configMap"]
        )
        (folder / "models.config").write_text(text)
        (model,) = models_config.read(folder / "models.config")
        versions = list(model.policy.specific.versions)
        found[deployment["metadata"]["labels"]["track"]] = versions
    return found


def test_the_canary_is_what_stable_is(rendered):
    """But for its name, track, versions and number of replicas."""
    documents = rendered("production", ("canary", "mtls"))
    pods = [
        deployment["spec"]["template"]["spec"] for deployment in of_kind(documents, "Deployment")
    ]
    stable, canary = ({**pod, "topologySpreadConstraints": None, "volumes": None} for pod in pods)
    assert stable == canary


@pytest.fixture
def make(tmp_path):
    """Run make in a copy of the manifests, with a kubectl that only says what it was asked."""
    manifests.copy(tmp_path)
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)

    def run(*arguments):
        ready = "--old-file=.venv/.ready"
        return subprocess.run(
            ["make", "--silent", ready, "KUBECTL=echo kubectl", *arguments],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    return run


def test_one_command_each(make, tmp_path):
    refused = make("canary-promote")
    assert refused.returncode == 2
    assert "add ../../components/canary" in refused.stderr

    manifests.with_components(tmp_path / "k8s", "production", ("canary",))
    for arguments, versions in (
        (["canary-start", "VERSION=9"], "CANARY_VERSION=9\nCANARY_WEIGHT=5"),
        (["canary-start", "VERSION=9", "PERCENT=30"], "CANARY_VERSION=9\nCANARY_WEIGHT=30"),
        (["canary-promote"], "STABLE_VERSION=9\nSTABLE_WEIGHT=100"),
        (["canary-rollback"], "STABLE_WEIGHT=100\nCANARY_VERSION=9\nCANARY_WEIGHT=0"),
    ):
        done = make(*arguments)
        assert done.returncode == 0, done.stderr
        assert versions in done.stdout
        assert done.stdout.endswith("kubectl apply -k k8s/overlays/production\n")
    assert make("canary-start").returncode == 2  # no version
