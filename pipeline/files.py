"""Files that are there whole or not at all: write aside, fsync, rename."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Let `save` write a file beside `path`, then put it in place by one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as folder:
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
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as folder:
        partial = Path(folder) / path.name
        save(partial)
        sync_tree(partial)
        if path.exists():
            path.rename(Path(folder) / "old")
        partial.rename(path)
    sync(path.parent)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder and wait until it is on the disk."""
    shutil.copytree(source, target)
    sync_tree(target)


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
