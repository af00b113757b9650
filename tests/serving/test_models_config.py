from pathlib import Path

import pytest

from serving import models_config
from serving.errors import Code, ConfigError, ServingError
from serving.models_config import ModelConfig
from tests.conftest import ROOT


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "models.config"
    path.write_text(text)
    return path


def test_the_committed_file_serves_googlenets_latest():
    (model,) = models_config.read(ROOT / "serving" / "config" / "models.config")
    assert model.name == "googlenet"
    assert model.wanted([1, 2, 10]) == [10]


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ("", [9]),
        ("model_version_policy { latest { num_versions: 2 } }", [4, 9]),
        ("model_version_policy { all {} }", [1, 4, 9]),
        ("model_version_policy { specific { versions: 4 versions: 5 } }", [4]),
    ],
)
def test_policies_choose_among_what_is_there(tmp_path, policy, wanted):
    path = write(
        tmp_path,
        f'model_config_list {{ config {{ name: "m" base_path: "/m" {policy} '
        'model_platform: "tensorflow" version_labels { key: "stable" value: 4 } } }',
    )
    (model,) = models_config.read(path)
    assert model.wanted([1, 4, 9]) == wanted
    assert model.labels == {"stable": 4}
    assert model.wanted([]) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model_config_list {", "models.config: "),
        ("nonsense: 1", "nonsense"),
        ('model_config_list { config { name: "m" model_platform: "tensorflow" } }',
         "model m to have an absolute path"),
        ('model_config_list { config { name: "m" base_path: "a/b" } }', r"base_path\(\)=a/b"),
        ('model_config_list { config { name: "m" base_path: "/m" } }', "model_platform.* is m"),
        ('model_config_list { config { name: "m" base_path: "/m" model_platform: "torch" } }',
         "m requests unsupported platform torch"),
        ('model_config_list { config { name: "m" base_path: "/m" model_platform: "tensorflow" '
         "model_type: TENSORFLOW } }", "setting both .* is m"),
        ('model_config_list { config { name: "m" base_path: "/m" model_type: OTHER } }',
         "model_type choice 2 not supported"),
        ('model_config_list { config { name: "m" base_path: "/m" logging_config {} } }',
         "m has a logging_config: No request-logger-creator"),
        ("custom_model_config {}", "custom_model_config cannot be served"),
        ('model_config_list { config { name: "m" base_path: "/a" } '
         'config { name: "m" base_path: "/b" } }', "list model m multiple times"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_is_refused_by_name(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        models_config.read(write(tmp_path, text))
    assert "models.config" in str(caught.value)


def test_no_models_are_not_the_same_as_nothing_said(tmp_path):
    assert models_config.read(write(tmp_path, "model_config_list {}")) == []
    assert models_config.read(write(tmp_path, "# later")) is None


def test_a_base_path_may_be_a_file_uri(tmp_path):
    text = (
        'model_config_list { config { name: "m" base_path: "file:///m" model_type: TENSORFLOW } }'
    )
    (model,) = models_config.read(write(tmp_path, text))
    assert model.base_path == Path("/m")


def test_the_deprecated_type_is_a_platform(tmp_path):
    text = 'model_config_list { config { name: "m" base_path: "/m" model_type: TENSORFLOW } }'
    (model,) = models_config.read(write(tmp_path, text))
    assert model.platform == "tensorflow"


def test_a_model_stays_of_its_platform():
    served = ModelConfig("m", Path("/m"))
    other = ModelConfig("m", Path("/m"), platform="torch")
    models_config.check_platforms([served], {"m": served})
    with pytest.raises(ServingError, match=r"model m platform was tensorflow .* torch") as caught:
        models_config.check_platforms([other], {"m": served})
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        models_config.read(tmp_path / "models.config")
