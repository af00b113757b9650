"""An export that the gate let pass -> the next version in the model repository.

    python -m pipeline publish [--run runs/…] [--repository models] [--force [REASON]]

A version directory appears complete or not at all. `assets.extra/publication.json` in it says when
it was published, on what verdict, and whether by force. Takes a second.
"""

import json
import time
from pathlib import Path

from pipeline import files, labels
from pipeline.config import MODEL_NAME
from pipeline.errors import PipelineError
from pipeline.repository import Repository, compare, open_repository
from pipeline.run import Run

MANIFEST = "assets.extra/manifest.json"
PUBLICATION = "assets.extra/publication.json"


def publish(run: Run, repository: Path | str, force: bool | str = False) -> int:
    """Copy a run's export into the repository as the highest version + 1; returns that.

    Args:
        run: whose export and verdict are taken.
        repository: a path, or an address that TensorFlow reads.
        force: publish what the gate refuses; a text says why and is recorded.

    Raises:
        PipelineError: there is no export, its files are not those of its manifest, or the gate
            refuses it, or compared it with another version than the one that is stable there.
    """
    sums = check(run.export)
    verdict, refusal = judge(run, sums[MANIFEST])
    _refuse(refusal, force)
    try:
        store = open_repository(repository)
        store.create()
        with store.changing():
            refusal = refusal or _overtaken(run, verdict, store)
            _refuse(refusal, force)
            publication = {
                "published": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "forced": bool(refusal),
                "verdict": verdict,
                **({"refusal": refusal} if refusal else {}),
                **({"force_reason": force} if refusal and isinstance(force, str) else {}),
            }
            extra = {PUBLICATION: json.dumps(publication, indent=2) + "\n"}
            version = store.add(run.export, sums, extra)
    except OSError as error:
        why = error.strerror or error
        raise PipelineError(f"cannot publish into {repository}: {why}") from error
    print(f"published {repository}/{MODEL_NAME}/{version}{' by force' if refusal else ''}")
    return version


def _refuse(refusal: str | None, force: bool | str) -> None:
    if refusal and not force:
        raise PipelineError(f"{refusal}; to publish it all the same, give --force (FORCE=1)")


def check(folder: Path) -> dict[str, str]:
    """Compare the files of an export, or of a published version, with its manifest.

    Returns:
        SHA-256 of every file by name, the manifest's too, but not the publication's.

    Raises:
        PipelineError: there is no manifest, or naming the file that is missing, added or changed.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise PipelineError(f"no export at {folder}: make one with `make export`")
    found = files.checksums(folder)
    try:
        promised = dict(json.loads(manifest.read_text())["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{manifest} is broken ({error}): export the run again") from error
    found.pop(PUBLICATION, None)
    compare(promised, found, (MANIFEST,), folder)
    return found


def judge(run: Run, manifest_sha256: str) -> tuple[dict | None, str | None]:
    """The gate's verdict on an export, if there is one, and why it may not be published, if so."""
    try:
        verdict = json.loads(run.validation.read_text())
        blessed, reasons = verdict["blessed"] is True, [str(x) for x in verdict["reasons"]]
        judged = verdict["manifest_sha256"]
    except FileNotFoundError:
        return None, f"{run.export} was never validated: run `make validate RUN={run.path}`"
    except (ValueError, KeyError, TypeError) as error:
        return None, f"{run.validation} is broken ({error}): validate the run again"
    if judged != manifest_sha256:
        return verdict, f"{run.validation} is about another export: validate the run again"
    if not blessed:
        return verdict, f"the gate refuses {run.export}: {'; '.join(reasons) or 'no reason given'}"
    return verdict, None


def _overtaken(run: Run, verdict: dict | None, store: Repository) -> str | None:
    """Why a verdict is none here, if so: another version is stable than it compared with.

    A version of the same number may be another's, of another repository.
    """
    stable = labels.read(store).labels.get("stable")
    if verdict is None or stable is None:
        return None
    baseline, digest = verdict.get("baseline"), verdict.get("baseline_sha256")
    if stable != baseline:
        beside = f"version {baseline}" if baseline else "no stable version"
        found = f"compares with {beside}, and version {stable} is stable"
    elif digest is None:
        found = f"does not say which version {stable} it compares with"
    elif digest != store.sha256(f"{MODEL_NAME}/{stable}/{MANIFEST}"):
        found = f"compares with another version {stable} than the one in {store.place}"
    else:
        return None
    return f"{run.validation} {found}: validate the run again"
