"""kubectl against one cluster."""

import dataclasses
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Document = dict[str, Any]
SECONDS = 240


class KubectlError(Exception):
    """What kubectl said when it failed."""


@dataclass(frozen=True)
class Kubectl:
    """A program and whom it talks to.

    Attributes:
        program: kubectl.
        kubeconfig: of the cluster.
        namespace: of what is named without one.
    """

    program: Path
    kubeconfig: Path
    namespace: str = ""

    def within(self, namespace: str) -> "Kubectl":
        """The same for a namespace."""
        return dataclasses.replace(self, namespace=namespace)

    def start(self, *words: object, **options: Any) -> subprocess.Popen[str]:
        """`kubectl WORDS…`, under way; errors come with the output."""
        return subprocess.Popen(
            self._command(*words), env=self._environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
        )  # fmt: skip

    def complete(self, *words: object, given: str = "") -> subprocess.CompletedProcess[str]:
        """What became of `kubectl WORDS…`, which may fail."""
        return subprocess.run(
            self._command(*words), env=self._environment(), text=True,
            input=given, capture_output=True, timeout=SECONDS, check=False,
        )  # fmt: skip

    def __call__(self, *words: object, given: str = "") -> str:
        """What `kubectl WORDS…` prints.

        Raises:
            KubectlError: it fails, or warns; the server warns of what is deprecated, of fields that
                it does not know, and of pods that the namespace's Pod Security would not let in.
        """
        done = self.complete(*words, given=given)
        if done.returncode or "Warning:" in done.stderr:
            raise KubectlError(f"kubectl {' '.join(map(str, words))}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *words: object) -> Document:
        """An object, or a list of them."""
        return json.loads(self("get", *words, "--output=json"))

    def items(self, *words: object) -> list[Document]:
        """The objects of a list."""
        return self.get(*words)["items"]

    def apply(self, documents: list[Document], *flags: str) -> str:
        """Apply them by the server, which validates and completes them."""
        return self("apply", "--server-side", "--filename=-", *flags, given=_listed(documents))

    def create(self, documents: list[Document]) -> str:
        """Make what is not there yet, with its status."""
        return self("create", "--filename=-", given=_listed(documents))

    def _command(self, *words: object) -> list[str]:
        namespace = ["--namespace", self.namespace] if self.namespace else []
        return [str(self.program), *namespace, *map(str, words)]

    def _environment(self) -> dict[str, str]:
        return os.environ | {"KUBECONFIG": str(self.kubeconfig)}


def _listed(documents: list[Document]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
