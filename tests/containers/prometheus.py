"""Prometheus with the compose file's configuration and rules, for as long as a test needs it."""

import contextlib
import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tfs_client.bench.servers import free_port

from tests.containers.images import FOLDER
from tests.containers.programs import program, running

TARGET = "server:8501"


@dataclass(frozen=True)
class Prometheus:
    """One that answers.

    Attributes:
        url: of its API.
        version: its own.
    """

    url: str
    version: str

    def _get(self, path: str, **parameters: str) -> dict:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def value(self, query: str) -> float | None:
        """What a query that has one result says; None for none."""
        found = self._get("query", query=query)["result"]
        return float(found[0]["value"][1]) if found else None

    def alerts(self) -> dict[str, str]:
        """Name -> pending or firing."""
        found = self._get("alerts")["alerts"]
        return {alert["labels"]["alertname"]: alert["state"] for alert in found}

    def targets(self) -> list[str]:
        """Health of what it scrapes: up, down or unknown."""
        return [target["health"] for target in self._get("targets")["activeTargets"]]


@contextlib.contextmanager
def scraping(port: int, folder: Path) -> Iterator[Prometheus]:
    """Run it until the block is left.

    Args:
        port: of the server's REST API on this machine, the only thing that is not as it is shipped.
        folder: for its configuration and data.
    """
    path = program("prometheus")
    shutil.copytree(FOLDER / "prometheus", folder / "configuration")
    file = folder / "configuration/prometheus.yml"
    text = file.read_text()
    assert TARGET in text
    file.write_text(text.replace(TARGET, f"127.0.0.1:{port}"))
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    version = re.search(r"version ([\d.]+)", shown.stdout + shown.stderr)[1]
    own = free_port()
    words = [path, f"--config.file={file}", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address=127.0.0.1:{own}", "--log.level=error"]  # fmt: skip
    url = f"http://127.0.0.1:{own}"
    with running(words, f"{url}/-/ready"):
        yield Prometheus(url, version)
