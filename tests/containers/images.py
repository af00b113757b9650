"""Dockerfiles -> images, as their first lines say."""

import re
from pathlib import Path

from tests.conftest import ROOT
from tests.containers import base_image
from tests.containers.engine import Engine

FOLDER = ROOT / "serving/container"
BUILD_SECONDS = 1800


def build(engine: Engine, dockerfile: Path) -> str:
    """Build what a Dockerfile describes, under the name that it gives itself; returns the name."""
    tag = name(dockerfile)
    for base in sorted(base_image.names(dockerfile)):
        base_image.provide(engine, base)
    engine(
        "build", "--network=host", "--file", dockerfile, "--tag", tag, ROOT, timeout=BUILD_SECONDS
    )
    return tag


def name(dockerfile: Path) -> str:
    """What its first lines call the image."""
    (found,) = re.findall(r"-t (\S+) \.", dockerfile.read_text())
    return str(found)


def size(engine: Engine, image: str) -> int:
    """In bytes, with the base's."""
    return int(engine("image", "inspect", "--format", "{{.Size}}", image))
