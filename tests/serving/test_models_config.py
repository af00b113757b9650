from pathlib import Path

import pytest

from serving import models_config
from serving.errors import ConfigError
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
        'version_labels { key: "stable" value: 4 } } }',
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
        ("", "names no model"),
        ('model_config_list { config { name: "m" } }', "base_path"),
        ('model_config_list { config { base_path: "/m" } }', "needs a name"),
        ('model_config_list { config { name: "m" base_path: "/a" } '
         'config { name: "m" base_path: "/b" } }', "two models are named m"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_is_refused_by_name(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        models_config.read(write(tmp_path, text))
    assert "models.config" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        models_config.read(tmp_path / "models.config")
