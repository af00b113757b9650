"""The cluster that KUBECONFIG points at, by kubectl."""

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.k8s.manifests import tool

FORWARD_SECONDS = 30.0


class ClusterError(AssertionError):
    """The cluster refused what a test asked of it."""


@dataclass(frozen=True)
class Cluster:
    """One that answers.

    Attributes:
        kubectl: path of the program.
        context: kubeconfig's, which every command names: it may be switched meanwhile.
        version: the API server's.
    """

    kubectl: str
    context: str
    version: str

    def run(
        self, *words: object, timeout: float = 60, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`kubectl WORDS…`, however it ends."""
        return subprocess.run(
            [self.kubectl, f"--context={self.context}", *map(str, words)], input=given,
            capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def __call__(self, *words: object, timeout: float = 60, given: str | None = None) -> str:
        """`kubectl WORDS…`, which must succeed; what it prints."""
        done = self.run(*words, timeout=timeout, given=given)
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(map(str, words))}: {done.stderr.strip()}")
        return done.stdout.strip()

    @contextlib.contextmanager
    def forwarded(self, namespace: str, pod: str, port: int) -> Iterator[str]:
        """A pod's port, as an address of this machine."""
        words = [self.kubectl, f"--context={self.context}", f"--namespace={namespace}",
                 "port-forward", "--address=127.0.0.1", f"pod/{pod}", f":{port}"]  # fmt: skip
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            try:
                found = re.search(r"127\.0\.0\.1:\d+", process.stdout.readline())
                if not found:
                    raise ClusterError(f"port-forward to {pod} does not start")
                yield found[0]
            finally:
                process.terminate()


def cluster() -> Cluster:
    """The one of KUBECONFIG, or of kubectl's own file; skips where there is none that answers."""
    kubectl = tool("kubectl")
    named = os.environ.get("KUBECONFIG")
    if named and not any(Path(path).is_file() for path in named.split(os.pathsep) if path):
        pytest.skip(f"no cluster: KUBECONFIG={named} is no file")
    asked = _ask(kubectl, "config", "current-context")
    if asked.returncode:
        pytest.skip("no cluster: KUBECONFIG names none, and kubectl knows none by itself")
    context = asked.stdout.strip()
    words = (f"--context={context}", "version", "--output=json", "--request-timeout=10s")
    asked = _ask(kubectl, *words)
    server = json.loads(asked.stdout or "{}").get("serverVersion")
    if not server:
        last = asked.stderr.strip().splitlines() or ["it says nothing"]
        pytest.skip(f"the cluster of context {context} does not answer: {last[-1]}")
    return Cluster(kubectl, context, server["gitVersion"])


def _ask(kubectl: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [kubectl, *words], capture_output=True, text=True, timeout=60, check=False
    )


def until(what: str, condition, seconds: float) -> None:
    """Wait for a condition of the cluster."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not in {seconds:g} s: {what}")
        time.sleep(2)
