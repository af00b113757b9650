"""Weights from elsewhere: torchvision's GoogLeNet, and other runs to start training from.

    python -m pipeline import-weights --weights googlenet-1378be20.pth

makes a run of a checkpoint of torchvision's GoogLeNet, which can be evaluated, exported and
published as if it had been trained here. Ten seconds; PyTorch is not needed.
"""

from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tf_keras as keras

from pipeline import files, googlenet, run, torch_file
from pipeline.config import Config
from pipeline.errors import PipelineError, reason
from pipeline.run import Run

IMAGENET = "imagenet2012"  # the data set's name in TFDS
IMAGENET_CLASSES = 1000
AUXILIARY = tuple(googlenet.AUXILIARY_HEADS)  # what names of their layers and tensors begin with
HEADS = ("logits", *AUXILIARY)  # layers with a column per class
_CHECKPOINT = "name a checkpoint of torchvision's googlenet"


class Tensor(NamedTuple):
    """Where a layer's weight comes from: torchvision's tensor, and its axes in our order."""

    name: str
    axes: tuple[int, ...] = (0,)
    unflattened: tuple[int, ...] | None = None  # its shape before the axes are put in order


def _dense(layer: str, module: str, unflattened: tuple[int, ...] | None = None):
    axes = (1, 0) if unflattened is None else (2, 3, 1, 0)
    return {layer: (Tensor(f"{module}.weight", axes, unflattened), Tensor(f"{module}.bias"))}


def _conv(layer: str, module: str) -> dict[str, tuple[Tensor, ...]]:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {
        layer: (Tensor(f"{module}.conv.weight", (2, 3, 1, 0)),),  # [O,I,H,W] to [H,W,I,O]
        f"{layer}_bn": tuple(Tensor(f"{module}.bn.{part}") for part in parts),
    }


STEM = {"conv1": "conv1", "conv2_reduce": "conv2", "conv2": "conv3"}
BRANCHES = {
    "conv1": "branch1",
    "reduce3": "branch2.0",
    "conv3": "branch2.1",
    "reduce5": "branch3.0",
    "conv5": "branch3.1",
    "pool_proj": "branch4.1",
}


def _torchvision() -> dict[str, tuple[Tensor, ...]]:
    layers: dict[str, tuple[Tensor, ...]] = {}
    for layer, module in STEM.items():
        layers |= _conv(layer, module)
    for block in filter(None, googlenet.BLOCKS):
        for conv, branch in BRANCHES.items():
            layers |= _conv(f"inception_{block.name}_{conv}", f"inception{block.name}.{branch}")
    for head in googlenet.AUXILIARY_HEADS:
        layers |= _conv(f"{head}_conv", f"{head}.conv")
        # Its inputs were flattened from [C,H,W], ours are from [H,W,C].
        layers |= _dense(f"{head}_fc", f"{head}.fc1", unflattened=(1024, 128, 4, 4))
        layers |= _dense(head, f"{head}.fc2")
    return layers | _dense("logits", "fc")


# Our layer -> torchvision's tensors, in the order of the layer's weights.
TORCHVISION = _torchvision()


@dataclass(frozen=True)
class Initialization:
    """What a network began with.

    Attributes:
        source: the run's folder, or the checkpoint.
        loaded: names of the layers whose weights were copied.
        fresh: the other layers with weights -> why they were left as they were.
    """

    source: Path
    loaded: tuple[str, ...]
    fresh: dict[str, str]

    def __str__(self) -> str:
        names = {
            why: ", ".join(name for name in self.fresh if self.fresh[name] == why)
            for why in self.fresh.values()
        }
        left = "; ".join(f"{names[why]} ({why})" for why in names)
        return (
            f"initialized from {self.source}: {len(self.loaded)} layers loaded; "
            f"left fresh: {left or 'none'}"
        )


def import_torchvision(path: Path, root: Path, class_names: tuple[str, ...] | None = None) -> Run:
    """Make a run below `root` of a checkpoint of torchvision's GoogLeNet.

    The auxiliary heads of torchvision's own file (googlenet-1378be20.pth) are not trained.

    Args:
        path: what `torch.save(model.state_dict(), path)` wrote, see `torch_file.read`.
        root: where runs are.
        class_names: as many as the checkpoint has classes; left out, a thousand classes are those
            of TFDS's imagenet2012 (WordNet ids), and others get numbers.

    Raises:
        PipelineError: the file is none, lacks a tensor or has one too many or of another shape, or
            the number of names is wrong.
    """
    start = _checkpoint(path, class_names)
    made = run.create(root, start.recipe, start.class_names)
    files.write(made.weights, lambda partial: start.network.save_weights(str(partial)))
    heads = "with" if start.recipe.auxiliary_heads else "without"
    print(
        f"imported {path}: {len(_layers(start.network))} layers, {heads} auxiliary heads, "
        f"{len(start.class_names)} classes: {made.path}\n"
        f"next: make publish RUN={made.path}, or fine-tune it with "
        f"make train PRESET=finetune DATASET=… INIT_FROM={made.path}"
    )
    return made


def initialize(
    network: keras.Model, recipe: Config, class_names: tuple[str, ...], source: Path
) -> Initialization:
    """Start a network with the weights of another, for fine-tuning; call it before training.

    The classifiers `HEADS` stay as they are unless both have the same classes in the same order.
    Auxiliary heads that the source lacks, or that it has for another image size, stay as well.

    Args:
        network: built by `recipe` for `class_names`; its weights are set.
        recipe: its variant and stem must be the source's; the image size may differ.
        class_names: the classes that the network is to tell apart.
        source: a finished run's folder, or a checkpoint of torchvision's GoogLeNet.

    Raises:
        PipelineError: there is no such source, or its variant or stem is another.
    """
    start = check(source, recipe)
    layers, theirs = _layers(network), _layers(start.network)
    fresh = {}
    for name, layer in layers.items():
        if why := _why_fresh(name, layer, theirs.get(name), start.class_names, class_names):
            fresh[name] = why
    loaded = tuple(name for name in layers if name not in fresh)
    for name in loaded:
        layers[name].set_weights(theirs[name].get_weights())
    return Initialization(source, loaded, fresh)


def from_torchvision(state: dict[str, np.ndarray], network: keras.Model) -> tuple[str, ...]:
    """Set a network's weights to those of torchvision's GoogLeNet; all of them or none.

    Args:
        state: torchvision's tensors by name; `num_batches_tracked` is ignored.
        network: built with variant torchvision, stem imagenet, and as many classes.

    Returns:
        The layers left as they were: those of the auxiliary heads, if the state has neither.

    Raises:
        PipelineError: the network is of another variant or stem, or a tensor is missing, has
            another shape, or is not GoogLeNet's.
    """
    layers = _layers(network)
    _check_form(network)
    left = () if _has_heads(state) else AUXILIARY
    fresh = tuple(name for name in layers if name.startswith(left))
    weights = {
        name: [
            _weight(state, tensor, shape)
            for tensor, shape in zip(TORCHVISION[name], _shapes(layer), strict=True)
        ]
        for name, layer in layers.items()
        if name not in fresh
    }
    known = {tensor.name for tensors in TORCHVISION.values() for tensor in tensors}
    for name in state:
        if name not in known and not name.endswith(".num_batches_tracked"):
            raise PipelineError(f"tensor {name} is not GoogLeNet's: {_CHECKPOINT}")
    for name, values in weights.items():
        layers[name].set_weights(values)
    return fresh


def their_shape(tensor: Tensor, ours: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of torchvision's tensor where the weight made of it has the shape `ours`."""
    if tensor.unflattened is not None:
        return ours[::-1]
    return tuple(ours[i] for i in np.argsort(tensor.axes))


def check(source: Path, recipe: Config) -> "_Start":
    """The network of a source of weights, which must fit a recipe.

    Raises:
        PipelineError: there is none, or its variant or stem is another.
    """
    if not source.exists():
        raise PipelineError(f"nothing at {source}: name a run's folder or a checkpoint file")
    if source.suffix == ".h5":
        raise PipelineError(f"{source} is a run's weights: name the run's folder, {source.parent}")
    start = _run(source) if source.is_dir() else _checkpoint(source)
    for field in ("variant", "stem"):
        theirs, ours = getattr(start.recipe, field), getattr(recipe, field)
        if theirs != ours:
            raise PipelineError(
                f"{source} has {field} {theirs} and the network to train {ours}: choose a recipe "
                f"with {field} {theirs}, or another start"
            )
    return start


def load(network: keras.Model, run: Run) -> None:
    """Give a network a run's weights.

    Raises:
        PipelineError: there are none, or they are another network's.
    """
    try:
        network.load_weights(str(run.weights))
    except (OSError, ValueError, KeyError) as error:
        raise PipelineError(
            f"{run.weights} does not fit its run ({reason(error)}): train again"
        ) from error


class _Start(NamedTuple):
    network: keras.Model
    recipe: Config
    class_names: tuple[str, ...]


def _run(path: Path) -> _Start:
    saved = run.load(path)
    network = _build(saved.config, len(saved.class_names))
    load(network, saved)
    return _Start(network, saved.config, saved.class_names)


def _checkpoint(path: Path, class_names: tuple[str, ...] | None = None) -> _Start:
    state = torch_file.read(path)
    try:
        classes = max(1, _named(state, "fc.bias").size)
        names = _default_names(classes) if class_names is None else class_names
        if len(names) != classes:
            raise PipelineError(f"has {classes} classes and {len(names)} are named: name each once")
        if "" in names:  # which is what an image that cannot be decoded gets
            raise PipelineError(f"class {names.index('')} has an empty name: give it one")
        recipe = Config(
            preset="imported",
            dataset=IMAGENET if classes == IMAGENET_CLASSES else path.stem,
            image_size=224,
            variant="torchvision",
            stem="imagenet",
            auxiliary_heads=_has_heads(state),
        )
        network = _build(recipe, classes)
        from_torchvision(state, network)
    except PipelineError as error:
        raise PipelineError(f"{path}: {error}") from error
    return _Start(network, recipe, names)


def _build(recipe: Config, classes: int) -> keras.Model:
    return googlenet.build(
        classes, recipe.image_size, recipe.variant, recipe.stem, recipe.auxiliary_heads
    )


def _why_fresh(name, ours, theirs, their_classes, our_classes) -> str | None:
    """Why a layer's weights are not to be copied, or None if they are."""
    auxiliary = name.startswith(AUXILIARY)
    if theirs is None and auxiliary:
        return "not in the source"
    if name in HEADS and their_classes != our_classes:
        sizes = len(their_classes), len(our_classes)
        return "other class names" if sizes[0] == sizes[1] else "{} -> {} classes".format(*sizes)
    if theirs is not None and _shapes(ours) == _shapes(theirs):
        return None
    if auxiliary:
        return "of another image size"
    raise PipelineError(
        f"layer {name} is of another shape in the source: choose a recipe with its variant and stem"
    )


def _check_form(network: keras.Model) -> None:
    layers = _layers(network)
    sides = {name: layers[name].kernel_size[0] for name in ("conv1", "inception_3a_conv5")}
    if "conv1_bn" not in layers or sides != {"conv1": 7, "inception_3a_conv5": 3}:
        raise PipelineError(
            "torchvision's weights fit variant torchvision with stem imagenet alone: choose those"
        )


def _weight(state: dict[str, np.ndarray], tensor: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor as a weight of the given shape, float32."""
    value, expected = _named(state, tensor.name), their_shape(tensor, shape)
    if value.shape != expected:
        raise PipelineError(
            f"tensor {tensor.name} has shape {value.shape}, not {expected}: {_CHECKPOINT}"
        )
    if not np.isfinite(value).all():
        raise PipelineError(f"tensor {tensor.name} has values that are no numbers: {_CHECKPOINT}")
    value = value.reshape(tensor.unflattened or expected).transpose(tensor.axes)
    return value.reshape(shape).astype(np.float32)


def _has_heads(state: dict[str, np.ndarray]) -> bool:
    return any(name.startswith(AUXILIARY) for name in state)


def _named(state: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in state:
        raise PipelineError(f"tensor {name} is missing: {_CHECKPOINT}")
    return state[name]


def _default_names(classes: int) -> tuple[str, ...]:
    if classes != IMAGENET_CLASSES:
        return tuple(f"class {i}" for i in range(classes))
    # The file alone: importing TFDS takes seconds.
    labels = f"tensorflow_datasets/datasets/{IMAGENET}/labels.txt"
    path = Path(str(distribution("tensorflow-datasets").locate_file(labels)))
    return tuple(path.read_text().split())


def _layers(network: keras.Model) -> dict[str, keras.layers.Layer]:
    """The layers that have weights, by name."""
    return {layer.name: layer for layer in network.layers if layer.weights}


def _shapes(layer: keras.layers.Layer) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in layer.weights]
