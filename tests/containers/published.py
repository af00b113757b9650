"""A published version of GoogLeNet: 224×224, ten classes, weights at random."""

from pathlib import Path

from pipeline import export, publish, weights
from tests.pipeline import checkpoints, test_weights


def make(folder: Path) -> Path:
    """Make it through the pipeline's own stages, of a checkpoint as torch.save writes it.

    Returns:
        the version's directory, in folder/models/googlenet.
    """
    checkpoint = checkpoints.state_file(folder / "googlenet.pth", test_weights.torch_state())
    run = weights.import_torchvision(checkpoint, folder / "runs")
    export.export(run)
    number = publish.publish(run, folder / "models", force="its weights are random")
    return folder / "models/googlenet" / str(number)
