"""Small exports, and runs that have them: what publishing needs of them, without a training."""

from collections.abc import Callable
from pathlib import Path

from pipeline import config, files, run
from pipeline.run import Run


def save_bytes(folder: Path) -> None:
    """What nobody loads."""
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"a model" * 1000)
    (folder / "variables" / "variables.index").write_bytes(b"index")


def make_run(path: Path, save: Callable[[Path], object] = save_bytes, **manifest: object) -> Run:
    """A run with an export that `save` writes, and a manifest like `pipeline.export`'s."""
    made = run.create(path.parent, config.from_preset("demo"), ("a", "b"), path=path)
    save(made.export)
    (made.export / "assets.extra").mkdir(exist_ok=True)
    manifest = {"metrics": {"accuracy": 0.9130}, "exported": "2026-01-02T03:04:05Z", **manifest}
    manifest["sha256"] = files.checksums(made.export)
    files.write_json(made.export / "assets.extra" / "manifest.json", manifest)
    return made


def validate(made: Run, blessed: bool = True, **changed: object) -> Run:
    """Give a run a verdict."""
    digest = files.sha256(made.export / "assets.extra" / "manifest.json")
    reasons = [] if blessed else ["accuracy 0.1 is below 0.9", "too slow"]
    verdict = {"blessed": blessed, "reasons": reasons, "manifest_sha256": digest, **changed}
    files.write_json(made.validation, verdict)
    return made
