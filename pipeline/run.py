"""A training run's folder: what training leaves for evaluation and export.

runs/<time>-<preset>-<dataset>/
run.json          configuration, class names, number of training images, git commit
history.csv       a line per epoch
tensorboard/      curves and pictures
checkpoints/      what an interrupted training goes on from; gone when it has ended
weights.h5        written last: a run without it has not finished
evaluation.json   metrics on the test split       (evaluate)
confusion.png     of the test split               (evaluate)
predictions.npy   int64 [N], the predicted class of each test image, in order   (evaluate)
export/           the SavedModel                  (export)
validation.json   whether the export may be published, and why   (validate)
"""

import json
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline import config, files
from pipeline.errors import PipelineError

RECORD = "run.json"


@dataclass(frozen=True)
class Run:
    """One run's folder and what `run.json` says of it."""

    path: Path
    config: config.Config
    class_names: tuple[str, ...]
    train_images: int
    git_commit: str

    @property
    def finished(self) -> bool:
        return self.weights.is_file()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def confusion(self) -> Path:
        return self.path / "confusion.png"

    @property
    def weights(self) -> Path:
        return self.path / "weights.h5"

    @property
    def history(self) -> Path:
        return self.path / "history.csv"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.npy"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def validation(self) -> Path:
        return self.path / "validation.json"


def create(
    root: Path,
    recipe: config.Config,
    class_names: tuple[str, ...],
    train_images: int = 0,
    path: Path | None = None,
) -> Run:
    """Make a new run's folder: the one given, or one below `root`, named by the time in UTC."""
    if path is None:
        dataset = re.sub(r"\W+", "-", Path(recipe.dataset).name) or "images"
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        root.mkdir(parents=True, exist_ok=True)
        path = _new_folder(root, f"{stamp}-{recipe.preset}-{dataset}")
    run = Run(path, recipe, class_names, train_images, git_commit())
    files.write_json(
        path / RECORD,
        {
            "config": config.to_dict(recipe),
            "class_names": class_names,
            "train_images": train_images,
            "git_commit": run.git_commit,
        },
    )
    return run


def read(path: Path) -> Run:
    """Read a run, finished or not.

    Raises:
        PipelineError: no such folder, or no run's.
    """
    record = path / RECORD
    if not record.is_file():
        raise PipelineError(f"no run at {path}: train one with `make train`, or name it with --run")
    try:
        saved = json.loads(record.read_text())
        saved["config"] = config.Config(**saved["config"])
        saved["class_names"] = tuple(saved["class_names"])
        return Run(path, **saved)
    except (ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{record} is not a run's record ({error}): train again") from error


def load(path: Path) -> Run:
    """Read a finished run.

    Raises:
        PipelineError: no such folder, or its training has not finished.
    """
    run = read(path)
    if not run.finished:
        raise PipelineError(
            f"run {path} has no weights.h5: its training did not finish; go on with "
            f"`make train RUN={path}`"
        )
    return run


def latest(root: Path) -> Run:
    """The newest finished run.

    Raises:
        PipelineError: there is none.
    """
    finished = list(root.glob("*/weights.h5"))
    if not finished:
        raise PipelineError(f"no finished run in {root}/: train one with `make train`")
    return load(max(finished, key=lambda weights: weights.stat().st_mtime).parent)


def git_commit() -> str:
    """The source's commit, with `-dirty` when files differ from it; `unknown` outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _new_folder(root: Path, name: str) -> Path:
    """Two runs may start in one second: the later gets a number."""
    for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
        path = root / (name + suffix)
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise PipelineError(f"{root}/{name} and 999 more exist: remove some runs")
