import pytest

from pipeline import config, googlenet, optimizer, strategy
from pipeline.errors import PipelineError


def test_a_preset_states_only_what_differs():
    defaults = config.Config(preset="none")
    for name, fields in config.PRESETS.items():
        made = config.from_preset(name)
        for field, value in fields.items():
            assert getattr(made, field) == value
            assert getattr(defaults, field) != value, f"{name}.{field} repeats the default"


def test_overrides_win_and_none_does_not():
    made = config.from_preset("demo", epochs=7, batch_size=None)
    assert made.epochs == 7
    assert made.batch_size == config.from_preset("demo").batch_size


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("precision", "fp8"),
        ("strategy", "magic"),
        ("variant", "v3"),
        ("stem", "large"),
        ("epochs", 0),
        ("batch_size", -1),
        ("image_size", 8),
        ("learning_rate", float("nan")),
        ("shift", 0.7),
        ("seed", -1),
        ("schedule", "linear"),
        ("freeze", "6a"),
        ("dropout", 1.0),
        ("holdout", 0.9),
        ("crop", 0.0),
        ("averaging", 2),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(PipelineError, match=field) as caught:
        config.from_preset("demo", **{field: value})
    assert str(value) in str(caught.value)
    assert "choose" in str(caught.value)


def test_an_unknown_preset_is_answered_with_the_known():
    with pytest.raises(PipelineError, match="'nope': choose from best, demo"):
        config.from_preset("nope")


def test_names_are_those_of_the_tables():
    assert set(config.VARIANTS) == set(googlenet.VARIANTS)
    assert set(config.STEMS) == set(googlenet.STEMS)
    assert set(config.STRATEGIES) == set(strategy.STRATEGIES)
    assert set(config.SCHEDULES) == set(optimizer.SCHEDULES)
    blocks = [block.name for block in googlenet.BLOCKS if block]
    assert list(config.STAGES) == ["stem", *blocks]


@pytest.mark.parametrize("fields", [{"auxiliary_heads": True}, {"variant": "torchvision"}])
def test_what_does_not_go_together_is_said(fields):
    with pytest.raises(PipelineError, match=r"early_size goes neither .* choose one"):
        config.from_preset("best", **fields)


def test_nothing_is_kept_that_was_not_learnt():
    with pytest.raises(PipelineError, match=r"freeze is 5b, but .* name weights"):
        config.from_preset("finetune", freeze="5b")
    assert config.from_preset("finetune", freeze="5b", init_from="a run").freeze == "5b"
