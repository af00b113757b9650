"""What is in the model repository, and what need not be.

    python -m pipeline versions [--repository models]
    python -m pipeline prune --keep 3

`versions` prints a line per version, the newest first; `prune` deletes old ones.
"""

import calendar
import json
import time
from pathlib import Path

from pipeline import labels
from pipeline.config import MODEL_NAME
from pipeline.errors import PipelineError
from pipeline.labels import Served
from pipeline.publish import MANIFEST, PUBLICATION
from pipeline.repository import Repository, nothing_published, open_repository

_ROW = "{:>7}  {:14}  {:>8}  {:9}  {:7}  {:>7}"
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def table(repository: Path | str) -> str:
    """A line per version: labels, the export's accuracy, precision, verdict, age.

    Raises:
        PipelineError: nothing is published.
    """
    store = open_repository(repository)
    published = store.versions()
    if not published:
        raise nothing_published(store.place)
    served = labels.read(store)
    rows = [_row(store, served, version) for version in reversed(published)]
    heads = ("version", "labels", "accuracy", "precision", "verdict", "age")
    return "\n".join(_ROW.format(*cells).rstrip() for cells in (heads, *rows))


def prune(repository: Path | str, keep: int) -> list[int]:
    """Delete all but the newest versions and those that servers need; returns what was deleted.

    A labelled version stays, one that models.config has loaded, and the one that a roll-back would
    go to, whatever models.config says.

    Args:
        repository: a path, or an address that TensorFlow reads.
        keep: how many of the newest stay, at least 1, which servers without models.config serve.

    Raises:
        PipelineError: nothing is published, `keep` is less than 1, or history.json is broken.
    """
    if keep < 1:
        raise PipelineError(f"--keep is {keep}: at least the newest version has to stay")
    store = open_repository(repository)
    with store.changing():
        published = store.versions()
        if not published:
            raise nothing_published(store.place)
        served = labels.read(store)
        way_back = labels.stable_before(store, served.labels.get("stable"))[-1:]
        needed = {*published[-keep:], *served.versions, *served.labels.values(), *way_back}
        surplus = [version for version in published if version not in needed]
        for version in surplus:
            store.remove(version)
    kept = [" ".join([str(v), *served.of(v)]) for v in published if v in needed]
    print(f"removed {', '.join(map(str, surplus)) or 'nothing'}; kept {', '.join(kept)}")
    return surplus


def _row(store: Repository, served: Served, version: int) -> tuple[str, ...]:
    manifest = _json(store, version, MANIFEST)
    publication = _json(store, version, PUBLICATION)
    verdict = _dict(publication.get("verdict"))
    if verdict.get("manifest_sha256") != store.sha256(f"{MODEL_NAME}/{version}/{MANIFEST}"):
        verdict = {}  # by force, beside another export's
    accuracy = _accuracy(manifest, verdict)
    forced = publication.get("forced")
    return (
        str(version),
        ", ".join(served.of(version)),
        "" if accuracy is None else f"{accuracy:.4f}",
        str(manifest.get("precision", "")),
        "forced" if forced is True else "blessed" if forced is False else "",
        _age(publication.get("published") or manifest.get("exported")),
    )


def _accuracy(manifest: dict, verdict: dict) -> float | None:
    """Of the export by the gate, else when it was made, else of the network it was made of."""
    checks = verdict.get("checks")
    gate = [_dict(check) for check in checks] if isinstance(checks, list) else []
    found = [
        *(check.get("measured") for check in gate if check.get("check") == "accuracy"),
        _dict(manifest.get("precision_check")).get("accuracy"),
        _dict(manifest.get("metrics")).get("accuracy"),
    ]
    return next((value for value in found if isinstance(value, float | int)), None)


def _json(store: Repository, version: int, name: str) -> dict:
    """A version's record; empty if there is none that can be read."""
    try:
        value = json.loads(store.read(f"{MODEL_NAME}/{version}/{name}") or "{}")
    except ValueError:
        return {}
    return _dict(value)


def _dict(value: object) -> dict:
    """Empty where a record has something else there."""
    return value if isinstance(value, dict) else {}


def _age(since: object) -> str:
    """How long ago, in the largest unit of which there is one."""
    try:
        then = calendar.timegm(time.strptime(str(since), "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError:
        return ""
    seconds = max(0, int(time.time()) - then)
    unit, size = next((unit, size) for unit, size in _UNITS if seconds >= size or size == 1)
    return f"{seconds // size} {unit}"
