import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import evaluate, googlenet, learner, run, weights
from pipeline.config import Config
from pipeline.errors import PipelineError
from tests.pipeline import torchvision_golden as golden
from tests.pipeline.checkpoints import state_file

TOLERANCE = 1e-4  # absolute, of logits between 1 and 10


def build(classes=golden.CLASSES, size=224, variant="torchvision", stem="imagenet", heads=True):
    return googlenet.build(classes, size, variant, stem, heads)


def torch_state(heads: bool = True, classes: int = golden.CLASSES) -> dict[str, np.ndarray]:
    """A state dict of torchvision's GoogLeNet, with the counters that its batch norms have."""
    state = {}
    for layer in build(classes, heads=heads).layers:
        if layer.weights:
            for tensor, weight in zip(weights.TORCHVISION[layer.name], layer.weights, strict=True):
                shape = weights.their_shape(tensor, tuple(weight.shape))
                state[tensor.name] = golden.tensor(tensor.name, shape)
        if layer.name.endswith("_bn"):
            prefix = tensor.name.removesuffix("running_var")
            state[f"{prefix}num_batches_tracked"] = np.array(7)
    return state


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return torch_state()


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory) -> Path:
    return state_file(tmp_path_factory.mktemp("checkpoint") / "googlenet.pth", state)


def weights_of(network) -> dict[str, list[np.ndarray]]:
    return {layer.name: layer.get_weights() for layer in network.layers if layer.weights}


def assert_same(actual: dict, expected: dict) -> None:
    assert list(actual) == list(expected)
    for name, values in expected.items():
        for a, b in zip(actual[name], values, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


def assert_golden(network, answers, size: int) -> None:
    outputs = network(golden.pixels(size))
    for name in ("logits", "aux1", "aux2"):
        expected = answers[f"{name}_{size}"]
        assert expected.std() > 0.1
        assert np.abs(expected[0] - expected[1]).max() > 0.01  # the picture matters
        np.testing.assert_allclose(outputs[name], expected, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("size", golden.SIZES)
def test_answers_are_those_of_torchvision(size, state):
    network = build(size=size)
    assert weights.from_torchvision(state, network) == ()
    assert_golden(network, np.load(golden.FILE), size)


@pytest.mark.slow
def test_answers_are_those_of_torchvision_itself(tmp_path):
    # In a process of its own: torchvision crashes one that has loaded TensorFlow.
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    subprocess.run([sys.executable, "-W", "ignore", golden.__file__, tmp_path], check=True)
    answers = np.load(tmp_path / golden.FILE.name)
    for name in ("zip.pth", "legacy.pth"):
        made = weights.import_torchvision(tmp_path / name, tmp_path / "runs")
        for size in golden.SIZES:
            network = learner.build(replace(made.config, image_size=size), golden.CLASSES)
            network.load_weights(str(made.weights))
            assert_golden(network, answers, size)


def test_every_layer_of_the_network_has_tensors():
    assert {layer.name for layer in build().layers if layer.weights} == set(weights.TORCHVISION)


def test_heads_that_the_state_lacks_stay_fresh():
    network = build(size=32)
    before = weights_of(network)
    fresh = weights.from_torchvision(torch_state(heads=False), network)
    heads = [name for name in before if name.startswith("aux")]
    assert sorted(fresh) == sorted(heads)
    assert_same({name: weights_of(network)[name] for name in heads}, {n: before[n] for n in heads})


def test_heads_that_the_network_lacks_are_passed_over(state):
    assert weights.from_torchvision(state, build(size=32, heads=False)) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv2.bn.running_mean": None}, r"tensor conv2\.bn\.running_mean is missing"),
        ({"aux1.fc1.weight": None}, r"tensor aux1\.fc1\.weight is missing"),
        (
            {"inception4a.branch1.conv.weight": np.zeros((192, 480, 3, 3))},
            r"tensor inception4a\.branch1\.conv\.weight has shape \(192, 480, 3, 3\), "
            r"not \(192, 480, 1, 1\)",
        ),
        ({"fc.weight": np.zeros((10, 10))}, r"fc\.weight has shape \(10, 10\), not \(10, 1024\)"),
        ({"layer1.0.bias": np.zeros(3)}, r"tensor layer1\.0\.bias is not GoogLeNet's"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_and_nothing_is_set(change, message, state):
    network = build(size=32)
    before = weights_of(network)
    changed = {name: x for name, x in (state | change).items() if x is not None}
    with pytest.raises(PipelineError, match=message):
        weights.from_torchvision(changed, network)
    assert_same(weights_of(network), before)


@pytest.mark.parametrize(
    ("variant", "stem"),
    [("batch_norm", "imagenet"), ("paper", "imagenet"), ("torchvision", "small")],
)
def test_other_forms_of_the_network_are_refused(variant, stem, state):
    with pytest.raises(PipelineError, match="variant torchvision with stem imagenet"):
        weights.from_torchvision(state, build(size=32, variant=variant, stem=stem))


def test_import_makes_a_run_that_can_be_loaded_and_evaluated(checkpoint, tmp_path, capsys):
    names = tuple("abcdefghij")
    made = weights.import_torchvision(checkpoint, tmp_path, names)
    assert run.load(made.path) == run.latest(tmp_path) == made
    assert made.class_names == names
    assert (made.config.variant, made.config.image_size, made.config.auxiliary_heads) == (
        *("torchvision", 224),
        True,
    )
    printed = capsys.readouterr().out
    assert f"imported {checkpoint}: 123 layers, with auxiliary heads, 10 classes" in printed
    assert f"INIT_FROM={made.path}" in printed
    network = evaluate.load_network(made)
    expected = np.load(golden.FILE)["logits_224"]
    logits = network(golden.pixels(224))["logits"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


def test_a_thousand_classes_are_those_of_imagenet(tmp_path):
    path = state_file(tmp_path / "a.pth", torch_state(heads=False, classes=1000))
    made = weights.import_torchvision(path, tmp_path / "runs")
    assert (made.config.dataset, made.config.auxiliary_heads) == ("imagenet2012", False)
    assert len(set(made.class_names)) == 1000
    assert made.class_names[0] == "n01440764"


def test_other_numbers_of_classes_get_numbers(checkpoint, tmp_path):
    made = weights.import_torchvision(checkpoint, tmp_path)
    assert made.class_names == tuple(f"class {i}" for i in range(10))
    assert made.config.dataset == "googlenet"


def test_a_wrong_number_of_names_leaves_no_run(checkpoint, tmp_path):
    with pytest.raises(PipelineError, match="has 10 classes and 3 are named"):
        weights.import_torchvision(checkpoint, tmp_path / "runs", ("a", "b", "c"))
    assert not (tmp_path / "runs").exists()


def test_an_empty_name_is_refused(checkpoint, tmp_path):
    with pytest.raises(PipelineError, match="class 2 has an empty name"):
        weights.import_torchvision(checkpoint, tmp_path / "runs", ("a", "b", "", *"defghij"))
    assert not (tmp_path / "runs").exists()


def test_a_tensor_with_values_that_are_no_numbers_is_named(tmp_path):
    state = torch_state()
    state["inception3a.branch1.conv.weight"][0, 0] = np.nan
    path = state_file(tmp_path / "a.pth", state)
    with pytest.raises(PipelineError, match=r"inception3a\.branch1\.conv\.weight has values that"):
        weights.import_torchvision(path, tmp_path / "runs")


def test_a_mistake_names_the_file(tmp_path):
    path = state_file(tmp_path / "resnet.pth", {"layer1.0.conv1.weight": np.zeros(3, np.float32)})
    with pytest.raises(PipelineError, match=r"resnet\.pth: tensor fc\.bias is missing"):
        weights.import_torchvision(path, tmp_path / "runs")
    with pytest.raises(PipelineError, match="absent"):
        weights.import_torchvision(tmp_path / "absent", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


RECIPE = Config(preset="test", image_size=32, variant="torchvision", auxiliary_heads=True)


def test_fine_tuning_starts_with_the_trunk_and_fresh_heads(checkpoint, state):
    names = ("daisy", "rose")
    network = learner.build(RECIPE, len(names))
    before = weights_of(network)
    report = weights.initialize(network, RECIPE, names, checkpoint)
    assert str(report) == (
        f"initialized from {checkpoint}: 120 layers loaded; "
        "left fresh: aux1, aux2, logits (10 -> 2 classes)"
    )
    whole = build()
    weights.from_torchvision(state, whole)
    expected = weights_of(whole)
    assert_same(
        weights_of(network), {n: (before if n in report.fresh else expected)[n] for n in before}
    )


# Batch-normalised, with heads that are pooled to 1×1 and at 64 pixels to 2×2.
SMALL = Config(preset="test", image_size=16, stem="small", auxiliary_heads=True)
COLOURS = ("blue", "green", "red")


def saved_run(root: Path, recipe: Config = SMALL) -> run.Run:
    """A finished run whose network has random weights."""
    saved = run.create(root, recipe, COLOURS)
    learner.build(recipe, len(COLOURS)).save_weights(str(saved.weights))
    return saved


def test_all_is_loaded_where_the_classes_are_the_same(tmp_path):
    source = saved_run(tmp_path)
    network, expected = (learner.build(SMALL, 3) for _ in range(2))
    expected.load_weights(str(source.weights))
    report = weights.initialize(network, SMALL, COLOURS, source.path)
    assert str(report) == f"initialized from {source.path}: 123 layers loaded; left fresh: none"
    assert_same(weights_of(network), weights_of(expected))


@pytest.mark.parametrize(
    ("had", "wanted", "names", "fresh"),
    [
        ({}, {}, COLOURS[::-1], "aux1, aux2, logits (other class names)"),
        ({}, {"image_size": 64}, COLOURS, "aux1_fc, aux2_fc (of another image size)"),
        ({"auxiliary_heads": False}, {}, ("a",), "{} (not in the source); logits (3 -> 1 classes)"),
        ({}, {"auxiliary_heads": False}, COLOURS, "none"),
    ],
)
def test_heads_that_do_not_fit_stay_fresh(had, wanted, names, fresh, tmp_path):
    source = saved_run(tmp_path, replace(SMALL, **had))
    recipe = replace(SMALL, **wanted)
    network = learner.build(recipe, len(names))
    report = str(weights.initialize(network, recipe, names, source.path))
    parts = ("conv", "conv_bn", "fc")
    heads = ", ".join(
        name
        for part in (*parts, "")
        for name in (f"{head}_{part}".rstrip("_") for head in googlenet.AUXILIARY_HEADS)
    )
    assert report.endswith("left fresh: " + fresh.format(heads))


@pytest.mark.parametrize(("field", "value"), [("variant", "batch_norm"), ("stem", "small")])
def test_another_variant_or_stem_is_refused(field, value, checkpoint):
    recipe = replace(RECIPE, **{field: value})
    network = learner.build(recipe, 2)
    with pytest.raises(PipelineError, match=rf"googlenet\.pth has {field} .* {value}: choose"):
        weights.initialize(network, recipe, ("a", "b"), checkpoint)


def test_a_source_that_is_none_is_named(tmp_path):
    network = learner.build(RECIPE, 2)
    with pytest.raises(PipelineError, match=r"nothing at .*absent"):
        weights.initialize(network, RECIPE, ("a", "b"), tmp_path / "absent")
    with pytest.raises(PipelineError, match="no run at"):
        weights.initialize(network, RECIPE, ("a", "b"), tmp_path)


def test_weights_that_do_not_fit_their_run_are_named(tmp_path):
    source = saved_run(tmp_path)
    source.weights.write_text("none")
    network = learner.build(SMALL, 3)
    with pytest.raises(PipelineError, match=r"weights\.h5 does not fit its run"):
        weights.initialize(network, SMALL, COLOURS, source.path)
