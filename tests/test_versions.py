"""Contract 3: TensorFlow, tf-keras, tensorflow-serving-api and TensorFlow Serving move together."""

import importlib.metadata
import importlib.util
import re
import tomllib

import pytest

from tests.conftest import ROOT

TOGETHER = ("tensorflow", "tf-keras", "tensorflow-serving-api")


def constraints() -> dict[str, str]:
    pairs = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    return {name.replace("_", "-").lower(): version for name, version in pairs}


def minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def test_the_three_packages_share_one_minor_version():
    pinned = {minor(constraints()[name]) for name in TOGETHER}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        minor(requirement.partition("==")[2])
        for requirement in project["dependencies"]
        if requirement.partition("==")[0] in TOGETHER
    }
    assert len(pinned) == 1
    assert declared == pinned


def test_what_is_installed_is_what_is_pinned():
    if importlib.util.find_spec("torch"):
        pytest.skip("the extra `peers` is installed, which is not pinned")
    installed = {
        distribution.name.replace("_", "-").lower(): distribution.version
        for distribution in importlib.metadata.distributions()
    }
    pinned = constraints()
    ours = {"googlenet-serving", "tfs-client", "pip", "setuptools"}
    assert {name: pinned.get(name) for name in installed.keys() - ours} == {
        name: installed[name] for name in installed.keys() - ours
    }


def test_constraints_name_no_registry():
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert "index" not in text
