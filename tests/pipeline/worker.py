"""One training process: `python -m tests.pipeline.worker FOLDER RUN FIELDS`, fields as JSON."""

import json
import sys
from pathlib import Path

from pipeline import config, dataset, strategy, train


def main(folder: str, run: str, fields: str) -> None:
    recipe = config.from_preset("demo", dataset=folder, **json.loads(fields))
    workers = strategy.start(recipe.strategy, wait_seconds=60)
    data = dataset.load(folder)
    chosen = train.open_run(Path(run), Path(run).parent, recipe, data, workers, 60)
    train.train(chosen, data, workers, checkpoint_seconds=5, wait_seconds=60)


if __name__ == "__main__":
    main(*sys.argv[1:])
