"""Everything once: data, training, evaluation, export, publishing, serving, classifying.

    make demo

takes about three minutes on two cores, of which training takes two, and a minute more where `.venv`
is to be set up. It ends with the accuracy of the served model beside that of the trained one, on
the same test images.
"""

import time
from pathlib import Path

import numpy as np

from pipeline import (
    config,
    dataset,
    evaluate,
    export,
    publish,
    samples,
    strategy,
    train,
    validate,
)
from pipeline.dataset import Dataset
from pipeline.errors import PipelineError
from pipeline.local_server import serving
from pipeline.run import Run
from pipeline.verdict import Thresholds

IMAGES = 1000
SHOWN = 8
FLOOR = 0.88  # what the preset reaches with certainty; below it something is broken


def demo(data_dir: Path, mirror: str | None, runs: Path, models: Path) -> None:
    """Run every stage on Fashion-MNIST and compare the served answers with the offline ones.

    Raises:
        PipelineError: they differ, or are worse than they should be.
    """
    recipe = config.from_preset("demo")
    workers = strategy.start(recipe.strategy)
    data = _stage("data", lambda: dataset.load(recipe.dataset, data_dir, mirror))
    print(f"{data.train.size:,} training and {data.test.size:,} test images")
    print(f"sample images: {samples.write(data, data_dir)}")
    run = train.open_run(None, runs, recipe, data, workers)
    _stage("train", lambda: train.train(run, data, workers))
    _stage("evaluate", lambda: evaluate.evaluate(run, data))
    _stage("export", lambda: export.export(run))
    asked = Thresholds(floor=FLOOR, images=IMAGES)
    _stage("validate", lambda: validate.validate(run, data, models, asked))
    _stage("publish", lambda: publish.publish(run, models))
    _stage("serve and classify", lambda: _classify(run, data, models))


def _stage(name: str, work):
    print(f"\n--- {name}", flush=True)
    return work()


def _classify(run: Run, data: Dataset, models: Path) -> None:
    images, labels = zip(*samples.encoded(data, IMAGES), strict=True)
    offline = np.load(run.predictions)[: len(images)]
    with serving(models) as client:
        version = client.wait_until_ready()
        client.classify(images[: client.batch_size])  # the first call opens the connection
        started = time.monotonic()
        answers = client.classify(images)
        seconds = time.monotonic() - started
    served = np.array([data.class_names.index(answer.label) for answer in answers])
    print(f"\n{'image':>5}  {'is':14} {'served':14} {'score':>5}")
    for i in range(min(SHOWN, len(answers))):
        print(
            f"{i:5}  {data.class_names[labels[i]]:14} {answers[i].label:14} {answers[i].score:.3f}"
        )
    agree = int((served == offline).sum())
    served_accuracy, offline_accuracy = (float((x == labels).mean()) for x in (served, offline))
    print(
        f"\nmodel version {version}: {len(images)} test images over gRPC in {seconds:.1f} s, "
        f"{len(images) / seconds:,.0f} images/s"
        f"\naccuracy: served {served_accuracy:.4f}, offline {offline_accuracy:.4f}; "
        f"same answer for {agree} of {len(images)} images"
    )
    if agree != len(images):
        raise PipelineError("served and offline answers differ: the export is not the network")
