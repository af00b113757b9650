"""How a network is trained: one frozen record, validated when made, and the named presets."""

import dataclasses
from dataclasses import dataclass

from pipeline.errors import PipelineError, choice

MODEL_NAME = "googlenet"  # of the servable, and of its directory in the model repository

PRECISIONS = ("auto", "fp32", "bf16")
STRATEGIES = ("one", "mirrored", "multiworker", "tpu")
VARIANTS = ("paper", "batch_norm", "torchvision")
STEMS = ("imagenet", "small")


@dataclass(frozen=True)
class Config:
    """A training recipe.

    Attributes:
        preset: the preset it was made from.
        dataset: a TFDS name, or a folder with one sub-folder of images per class.
        image_size: side of the network's input in pixels, 16 to 1024.
        variant: form of the network, see `googlenet.VARIANTS`.
        stem: form of the first layers, see `googlenet.STEMS`.
        auxiliary_heads: train with the paper's two auxiliary classifiers, losses × 0.3.
        epochs: passes over the training split.
        batch_size: images per step, over all replicas together.
        learning_rate: highest rate; it rises over the first tenth and falls on a cosine to 0.
        weight_decay: fraction of each kernel taken off per step, × the learning rate.
        shift: how far pictures are shifted by chance, as a share of their side, 0 to 0.5.
        precision: `bf16` computes in bfloat16 and keeps float32 weights; `auto` picks it where
            the processor has it.
        strategy: the tf.distribute strategy, see `train.STRATEGIES`.
        seed: of weights, order and augmentation.
    """

    preset: str
    dataset: str = "fashion_mnist"
    image_size: int = 224
    variant: str = "batch_norm"
    stem: str = "imagenet"
    auxiliary_heads: bool = True
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    shift: float = 0.125
    precision: str = "auto"
    strategy: str = "one"
    seed: int = 1

    def __post_init__(self) -> None:
        for what, known in (
            ("precision", PRECISIONS),
            ("strategy", STRATEGIES),
            ("variant", VARIANTS),
            ("stem", STEMS),
        ):
            if getattr(self, what) not in known:
                raise choice(what, getattr(self, what), known)
        for what, low, high in (
            ("image_size", 16, 1024),
            ("epochs", 1, 10_000),
            ("batch_size", 1, 65_536),
            ("learning_rate", 1e-8, 100.0),
            ("weight_decay", 0.0, 1.0),
            ("shift", 0.0, 0.5),
            ("seed", 0, 2**31 - 1),
        ):
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
    # The network and input of the paper, with biases and local response normalisation.
    "paper": {"variant": "paper", "batch_size": 32, "learning_rate": 0.01, "weight_decay": 2e-4},
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
