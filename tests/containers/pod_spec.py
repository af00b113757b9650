"""A rendered pod -> the arguments of `docker run` that give a container the same.

What a field of the pod has no equivalent here is named in `ELSEWHERE` with the reason; a field that
is neither there nor understood is an error, so that nothing of the manifests is silently left out.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.k8s.manifests import Document, of_kind

ELSEWHERE = {
    "serviceAccountName": "the API server's",
    "automountServiceAccountToken": "the API server's",
    "enableServiceLinks": "the API server's",
    "topologySpreadConstraints": "the scheduler's",
    "shareProcessNamespace": "kubelet.py",
    "terminationGracePeriodSeconds": "kubelet.py",
    "imagePullPolicy": "the image is built here",
    "startupProbe": "kubelet.py",
    "readinessProbe": "kubelet.py",
    "livenessProbe": "kubelet.py",
    "lifecycle": "kubelet.py",
    "name": "a name",
}
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9, "": 1}
ALL_MAY_WRITE = 0o777  # an emptyDir is so


@dataclass(frozen=True)
class Place:
    """Where a pod's things are on this machine.

    Attributes:
        folder: for what is written: ConfigMaps' files, emptyDirs.
        claims: folders by the name of their PersistentVolumeClaim.
        ports: of this machine by their names in the pod. Containers have the machine's network, and
            so cannot all have the same.
    """

    folder: Path
    claims: Mapping[str, Path]
    ports: Mapping[str, int]


class UnknownFieldError(AssertionError):
    """The manifests say something that these tests would not run."""


def quantity(text: object) -> float:
    """Kubernetes' `2`, `500m`, `2Gi`."""
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(text)).groups()
    return float(number) / 1000 if unit == "m" else float(number) * UNITS[unit]


def arguments(spec: Document, documents: list[Document], place: Place) -> list[str]:
    """All after `docker run`, of the pod's only container.

    Args:
        spec: the pod's, rendered.
        documents: what else is applied, of which ConfigMaps are looked up.
        place: where its things are.
    """
    (container,) = spec["containers"]
    words = ["--network=host", "--no-healthcheck"]  # a kubelet does not look at the image's own
    _check(spec, {"securityContext", "containers", "volumes"})
    _check(
        container,
        {
            "image",
            "command",
            "args",
            "env",
            "ports",
            "resources",
            "securityContext",
            "volumeMounts",
        },
    )
    words += _security(spec.get("securityContext", {}), container.get("securityContext", {}))
    words += _resources(container["resources"])
    environment = {entry["name"]: _value(entry, container) for entry in container.get("env", [])}
    for name, value in environment.items():
        words += ["--env", f"{name}={value}"]
    for mount in container.get("volumeMounts", []):
        words += _mount(mount, spec["volumes"], documents, place)
    program, *rest = container.get("command") or [None]
    if program:
        words += ["--entrypoint", program]
    given = [_expand(argument, environment) for argument in container.get("args", [])]
    return [*words, container["image"], *rest, *_with_ports(given, container, place.ports)]


def _check(part: Document, understood: set[str]) -> None:
    if unknown := part.keys() - understood - ELSEWHERE.keys():
        raise UnknownFieldError(f"these tests do not run {', '.join(sorted(unknown))}: teach them")


def _security(pod: Document, container: Document) -> list[str]:
    """Docker's own seccomp profile is what RuntimeDefault means; nothing is to be said of it."""
    both = {**pod, **container}
    _check(
        both,
        {"runAsNonRoot", "runAsUser", "runAsGroup", "seccompProfile", "allowPrivilegeEscalation",
         "readOnlyRootFilesystem", "capabilities"},
    )  # fmt: skip
    if both.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        raise UnknownFieldError("these tests run no seccomp profile but RuntimeDefault")
    if both.get("runAsNonRoot"):
        assert both["runAsUser"] != 0
    words = [f"--user={both['runAsUser']}:{both['runAsGroup']}"]
    words += [f"--cap-drop={name}" for name in both.get("capabilities", {}).get("drop", [])]
    words += [f"--cap-add={name}" for name in both.get("capabilities", {}).get("add", [])]
    if both.get("allowPrivilegeEscalation") is False:
        words.append("--security-opt=no-new-privileges")
    if both.get("readOnlyRootFilesystem"):
        words.append("--read-only")
    return words


def _resources(resources: Document) -> list[str]:
    limits, requests = resources["limits"], resources["requests"]
    memory = int(quantity(limits["memory"]))
    return [
        f"--memory={memory}",
        f"--memory-swap={memory}",  # a kubelet gives no swap
        f"--cpus={quantity(limits['cpu']):g}",
        f"--cpu-shares={int(quantity(requests['cpu']) * 1024)}",
    ]


def _value(entry: Document, container: Document) -> str:
    source = entry.get("valueFrom")
    if source is None:
        return entry["value"]
    limit, _, name = source["resourceFieldRef"]["resource"].partition(".")
    return str(math.ceil(quantity(container["resources"][limit][name])))


def _expand(argument: str, environment: Mapping[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], argument)


def _with_ports(given: list[str], container: Document, ports: Mapping[str, int]) -> list[str]:
    """The only arguments that are not the manifest's own."""
    mine = {str(port["containerPort"]): str(ports[port["name"]]) for port in container["ports"]}
    changed = []
    for argument in given:
        flag, _, value = argument.partition("=")
        changed.append(f"{flag}={mine[value]}" if flag.endswith("port") else argument)
    return changed


def _mount(
    mount: Document, volumes: list[Document], documents: list[Document], place: Place
) -> list[str]:
    (volume,) = (each for each in volumes if each["name"] == mount["name"])
    read_only = bool(mount.get("readOnly"))
    if "configMap" in volume:
        source = _files(volume["configMap"]["name"], documents, place.folder / mount["name"])
    elif "persistentVolumeClaim" in volume:
        claim = volume["persistentVolumeClaim"]
        source = place.claims[claim["claimName"]]
        read_only = read_only or bool(claim.get("readOnly"))
    elif "emptyDir" in volume:
        source = place.folder / mount["name"]
        source.mkdir(exist_ok=True)
        source.chmod(ALL_MAY_WRITE)
    else:
        raise UnknownFieldError(f"these tests have no such volume: {volume}")
    ending = ",readonly" if read_only else ""
    return ["--mount", f"type=bind,source={source},target={mount['mountPath']}{ending}"]


def _files(name: str, documents: list[Document], folder: Path) -> Path:
    """A ConfigMap as files, which everybody may read and nobody write."""
    (found,) = (d for d in of_kind(documents, "ConfigMap") if d["metadata"]["name"] == name)
    folder.mkdir(exist_ok=True)
    for file, text in found["data"].items():
        (folder / file).write_text(text)
    return folder
