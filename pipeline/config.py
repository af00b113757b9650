"""How a network is trained: one frozen record, validated when made, and the named presets."""

import dataclasses
from dataclasses import dataclass

from pipeline.errors import PipelineError, choice

MODEL_NAME = "googlenet"  # of the servable, and of its directory in the model repository

PRECISIONS = ("auto", "fp32", "bf16")
STRATEGIES = ("one", "mirrored", "multiworker", "tpu")
VARIANTS = ("paper", "batch_norm", "torchvision")
STEMS = ("imagenet", "small", "tiny")
SCHEDULES = ("cosine", "staircase")
# Stages of the network from the picture on: the stem, then the Inception blocks.
STAGES = ("stem", "3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")


@dataclass(frozen=True)
class Config:
    """A training recipe.

    Attributes:
        preset: the preset it was made from.
        dataset: a TFDS name, or a folder with one sub-folder of images per class.
        holdout: share of the training split kept out of training and measured after each epoch,
            0 to 0.5; choices are made on it, so that the test split stays unseen.
        image_size: side of the network's input in pixels, 16 to 512.
        early_size: side in the first part of training, where smaller pictures do; 0 for none.
        early_share: that part, as a share of the epochs, 0 to 1.
        variant: form of the network, see `googlenet.VARIANTS`.
        stem: form of the first layers, see `googlenet.STEMS`.
        auxiliary_heads: train with the paper's two auxiliary classifiers, losses × 0.3.
        dropout: before the classifier, 0 to 0.9; None is the variant's own.
        sync_batch_norm: take batch statistics over all replicas, as one replica with the whole
            batch would; pays where a replica's batch is small, and costs a message per layer.
        init_from: run folder or weights file to start from, see `weights.initialize`.
        freeze: the last stage that keeps its weights as they are, see `STAGES`; "" for none.
        epochs: passes over the training split.
        batch_size: images per step, over all replicas together.
        learning_rate: highest rate.
        schedule: how the rate goes, see `optimizer.SCHEDULES`.
        weight_decay: fraction of each kernel taken off per step, × the learning rate. It does not
            pass through the momentum of 0.9, so an L2 penalty (PyTorch's, Caffe's `weight_decay`)
            of a tenth does the same.
        label_smoothing: share of the target given to all classes alike, 0 to 0.5.
        averaging: share of all steps over which weights are averaged (exponentially) for the final
            network, 0 to 0.5; 0 takes the last weights.
        crop: least share of the picture's area that a random crop keeps, 0.01 to 1; 1 does not
            crop. Crops have aspect ratios of 3/4 to 4/3 (paper, section 6).
        shift: how far pictures are shifted by chance, as a share of their side, 0 to 0.5.
        erase: probability that a rectangle of a picture is blanked, 0 to 1 (Zhong et al. 2017).
        precision: `bf16` computes in bfloat16 and keeps float32 weights; `auto` picks it where
            the processor that a run begins on has it.
        strategy: the tf.distribute strategy, see `strategy.STRATEGIES`.
        seed: of weights, order and augmentation.
    """

    preset: str
    dataset: str = "fashion_mnist"
    holdout: float = 0.0
    image_size: int = 224
    early_size: int = 0
    early_share: float = 0.5
    variant: str = "batch_norm"
    stem: str = "imagenet"
    auxiliary_heads: bool = True
    dropout: float | None = None
    sync_batch_norm: bool = False
    init_from: str = ""
    freeze: str = ""
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 0.1
    schedule: str = "cosine"
    weight_decay: float = 5e-3
    label_smoothing: float = 0.0
    averaging: float = 0.0
    crop: float = 1.0
    shift: float = 0.125
    erase: float = 0.0
    precision: str = "auto"
    strategy: str = "one"
    seed: int = 1

    def __post_init__(self) -> None:
        for what, known in (
            ("precision", PRECISIONS),
            ("strategy", STRATEGIES),
            ("variant", VARIANTS),
            ("stem", STEMS),
            ("schedule", SCHEDULES),
            ("freeze", ("", *STAGES)),
        ):
            if getattr(self, what) not in known:
                raise choice(what, getattr(self, what), known)
        for what, low, high in (
            ("holdout", 0.0, 0.5),
            ("image_size", 16, 512),
            ("early_share", 0.0, 1.0),
            ("epochs", 1, 10_000),
            ("batch_size", 1, 65_536),
            ("learning_rate", 1e-8, 100.0),
            ("weight_decay", 0.0, 1.0),
            ("label_smoothing", 0.0, 0.5),
            ("averaging", 0.0, 0.5),
            ("crop", 0.01, 1.0),
            ("shift", 0.0, 0.5),
            ("erase", 0.0, 1.0),
            ("seed", 0, 2**31 - 1),
        ):
            self._check(what, low, high)
        if self.freeze and not self.init_from:
            raise PipelineError(
                f"freeze is {self.freeze}, but there is nothing learnt to keep: name weights to "
                "start from (--init-from), or leave it out"
            )
        if self.dropout is not None:
            self._check("dropout", 0.0, 0.9)
        if self.early_size:
            self._check("early_size", 16, self.image_size)
            if self.auxiliary_heads or self.variant == "torchvision":
                raise PipelineError(
                    "early_size goes neither with auxiliary_heads nor with variant torchvision, "
                    "whose layers have a fixed size: choose one or the other"
                )

    def _check(self, what: str, low: float, high: float) -> None:
        value = getattr(self, what)
        if not low <= value <= high:
            raise PipelineError(f"{what} is {value}: choose a value from {low} to {high}")


PRESETS: dict[str, dict[str, object]] = {
    # Fashion-MNIST on two cores in about two minutes.
    "demo": {
        "image_size": 28,
        "stem": "small",
        "auxiliary_heads": False,
        "epochs": 1,
        "weight_decay": 1e-4,
        "shift": 0.0,  # pays only over several epochs
    },
    # Fashion-MNIST as well as this network does it: docs/training.md has the figures.
    "best": {
        "image_size": 28,
        "early_size": 20,
        "stem": "tiny",
        "auxiliary_heads": False,
        "epochs": 12,
        "label_smoothing": 0.1,
        "averaging": 0.05,
        "shift": 2 / 28,
        "erase": 0.25,
    },
    # ImageNet by the paper's recipe (section 6), and by Caffe's bvlc_googlenet/solver.prototxt
    # where the paper is silent: rate, weight decay, batch, and 10 million steps = 250 epochs.
    "imagenet": {
        "dataset": "imagenet2012",
        "variant": "paper",
        "epochs": 250,
        "batch_size": 32,
        "learning_rate": 0.01,
        "schedule": "staircase",
        "weight_decay": 2e-3,
        "averaging": 0.01,
        "crop": 0.08,
        "shift": 0.0,
    },
    # The paper's network on a data set of one's own.
    "paper": {"variant": "paper", "batch_size": 32, "learning_rate": 0.01, "weight_decay": 2e-3},
    # Photos of one's own, from published weights: --init-from googlenet.pth or an imported run.
    "finetune": {
        "variant": "torchvision",
        "auxiliary_heads": False,
        "epochs": 10,
        "batch_size": 32,
        "learning_rate": 0.01,
        "weight_decay": 1e-3,
        "label_smoothing": 0.1,
        "crop": 0.3,
        "shift": 0.0,
    },
}


def from_preset(name: str, **overrides: object) -> Config:
    """The preset's recipe with the given fields changed; None leaves a field as it is.

    Raises:
        PipelineError: unknown preset, or a value out of range.
    """
    if name not in PRESETS:
        raise choice("preset", name, PRESETS)
    given = {field: value for field, value in overrides.items() if value is not None}
    return Config(preset=name, **(PRESETS[name] | given))  # type: ignore[arg-type]


def to_dict(config: Config) -> dict[str, object]:
    """The record as plain values, for JSON."""
    return dataclasses.asdict(config)
