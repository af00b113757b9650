"""Checks operators' resources by published models of them: python custom_resources.py FOLDER

Runs in `.venv/k8s`. Prints how many there were, and exits with 1 for the first that is wrong. The
models ignore fields that they do not know, so what they write again must be what they read.
"""

import sys
from pathlib import Path

import yaml
from cloudcoil.models.cert_manager import v1 as cert_manager
from cloudcoil.models.prometheus_operator import v1 as prometheus_operator

MODELS = {
    "cert-manager.io/v1": cert_manager,
    "monitoring.coreos.com/v1": prometheus_operator,
}


def main(folder: Path) -> int:
    count = 0
    for file in sorted(folder.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            module = MODELS.get(document["apiVersion"])
            if module is None:
                continue
            model = getattr(module, document["kind"]).model_validate(document)
            kept = model.model_dump(by_alias=True, exclude_unset=True, mode="json")
            name = f"{file.name}: {document['kind']} {document['metadata']['name']}"
            if kept != document:
                print(f"{name}: a field that is unknown, in {document}")
                return 1
            count += 1
    print(f"{count} resources are right")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
