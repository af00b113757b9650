"""Files that are there whole or not at all: write aside, fsync, rename."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

PARTIAL = ".partial-"  # what a killed process leaves begins with it


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Let `save` write a file beside `path`, then put it in place by one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=path.parent) as folder:
        partial = Path(folder) / path.name
        save(partial)
        sync(partial)
        partial.replace(path)
    sync(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON."""
    text = json.dumps(value, indent=2) + "\n"
    write(path, lambda partial: partial.write_text(text))


def replace_folder(path: Path, save: Callable[[Path], object]) -> None:
    """Let `save` fill a folder beside `path`, then put it in place of what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=path.parent) as folder:
        partial = Path(folder) / path.name
        save(partial)
        sync_tree(partial)
        old = Path(folder) / "old"
        try:
            if path.exists():
                path.rename(old)
            partial.rename(path)
        finally:
            if old.exists() and not path.exists():  # a signal came in between
                old.rename(path)
    sync(path.parent)


def sync_tree(folder: Path) -> None:
    """Fsync every file and folder below, the folder itself last."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(root) / name)
        sync(Path(root))


def sync(path: Path) -> None:
    """Fsync one file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path there."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): sha256(path) for path in paths}


def sha256(path: Path) -> str:
    """A file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
