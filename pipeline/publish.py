"""An export -> the next version in the model repository, by one rename.

    python -m pipeline publish [--run runs/…] [--repository models]

A version directory appears complete or not at all: servers that poll the repository may load a
partial copy (tensorflow/serving issues 1086, 572, 631).
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

from pipeline import export, files
from pipeline.config import MODEL_NAME
from pipeline.errors import PipelineError

STAGING_PREFIX = ".staging-"  # servers read directories named by a number only


def publish(exported: Path, repository: Path, model: str = MODEL_NAME) -> Path:
    """Copy an export into the repository as the highest version + 1; returns its directory.

    Raises:
        PipelineError: there is no export, or its files are not those of its manifest.
    """
    check(exported)
    base = repository / model
    base.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=base))
    try:
        staging.chmod(0o755)  # mkdtemp's is for the owner alone; servers run as somebody else
        files.copy_tree(exported, staging / "version")
        published = _rename_to_next(staging / "version", base)
    except OSError as error:
        raise PipelineError(f"cannot publish into {base}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    files.sync(base)
    print(f"published {published}")
    return published


def check(exported: Path) -> None:
    """Compare an export's files with its manifest.

    Raises:
        PipelineError: naming the file that is missing, added or changed.
    """
    manifest = exported / export.EXTRA / "manifest.json"
    if not manifest.is_file():
        raise PipelineError(f"no export at {exported}: make one with `make export`")
    try:
        promised = dict(json.loads(manifest.read_text())["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{manifest} is broken ({error}): export the run again") from error
    found = dict(export.checksums(exported))
    for name in sorted(promised.keys() | found.keys()):
        if promised.get(name) != found.get(name):
            raise PipelineError(
                f"{exported / name} is not as its manifest says: export the run again"
            )


def versions(base: Path) -> list[int]:
    """The published versions of a model, ascending."""
    return sorted(
        int(path.name) for path in base.iterdir() if path.name.isascii() and path.name.isdigit()
    )


def _rename_to_next(staged: Path, base: Path) -> Path:
    """Rename fails where another publisher took the number in between; then the next is tried."""
    version = max(versions(base), default=0) + 1
    while True:
        try:
            os.rename(staged, base / str(version))
            return base / str(version)
        except OSError:
            if not (base / str(version)).exists():
                raise
            version += 1
