import pytest

from pipeline import labels, promote, publish
from pipeline.errors import PipelineError
from pipeline.labels import Served
from pipeline.repository import LocalRepository
from tests.pipeline import exports


@pytest.fixture
def store(tmp_path):
    (tmp_path / "googlenet").mkdir()
    return LocalRepository(tmp_path)


def test_without_a_file_nothing_is_labelled(store):
    assert labels.read(store) == Served({}, ())


def test_what_is_written_is_read_and_other_models_stay(store, tmp_path):
    other = 'config { name: "other" base_path: "/o" model_platform: "tensorflow" }'
    (tmp_path / "models.config").write_text(f"model_config_list {{ {other} }}")
    served = Served({"stable": 1, "canary": 3}, (1, 2, 3))
    labels.write(store, served)
    assert labels.read(store) == served
    text = (tmp_path / "models.config").read_text()
    for words in ('name: "other"', f'base_path: "{tmp_path}/googlenet"', '"tensorflow"'):
        assert words in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model_config_list {", "is not a model server's"),
        ("custom_model_config {}", "lists no models but a custom_model_config"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_left(store, tmp_path, text, words):
    (tmp_path / "models.config").write_text(text)
    with pytest.raises(PipelineError, match=rf"models\.config {words}"):
        labels.write(store, Served({"stable": 1}, (1,)))
    assert (tmp_path / "models.config").read_text() == text


@pytest.mark.parametrize(
    "text", [b"{", b"[]", b"{}", b'{"stable": ["x"]}', b'["\xff"]', b'{"stable": [1e999]}']
)
def test_a_history_that_cannot_be_read_is_named(store, tmp_path, text):
    (tmp_path / "history.json").write_bytes(text)
    with pytest.raises(PipelineError, match=r"history\.json is broken"):
        labels.read_history(store)


@pytest.fixture
def models(tmp_path):
    run = exports.make_run(tmp_path / "run")
    for _ in range(4):
        publish.publish(run, tmp_path / "models", force=True)
    return tmp_path / "models"


def served(models) -> Served:
    return labels.read(LocalRepository(models))


def test_labels_move_and_go_back(models):
    promote.promote(models, 1, "stable")
    assert served(models) == Served({"stable": 1}, (1,))
    promote.promote(models, 2, "canary")
    assert served(models) == Served({"stable": 1, "canary": 2}, (1, 2))
    promote.promote(models, 2, "stable")
    promote.promote(models, 2, "stable")  # again is no move
    promote.promote(models, 3, "stable")
    assert served(models) == Served({"stable": 3, "canary": 2}, (2, 3))
    promote.promote(models, 4, "canary")
    assert served(models) == Served({"stable": 3, "canary": 4}, (2, 3, 4))
    assert promote.rollback(models) == 2
    assert served(models) == Served({"stable": 2, "canary": 4}, (1, 2, 4))
    assert promote.rollback(models) == 1
    assert served(models) == Served({"stable": 1, "canary": 4}, (1, 4))
    with pytest.raises(PipelineError, match="was stable before: promote one"):
        promote.rollback(models)


def test_back_and_forth(models):
    for version in (1, 3, 1):
        promote.promote(models, version, "stable")
    assert promote.rollback(models) == 3
    assert promote.rollback(models) == 1


@pytest.mark.parametrize(
    ("version", "label", "words"),
    [
        (9, "stable", "no version 9 in .*/models/googlenet: there are 1, 2, 3, 4"),
        (1, "best", "unknown label 'best': choose from canary, stable"),
    ],
)
def test_what_cannot_be_promoted_changes_nothing(models, version, label, words):
    with pytest.raises(PipelineError, match=words):
        promote.promote(models, version, label)
    assert not (models / "models.config").exists()


def test_a_roll_back_to_what_is_gone_is_refused(models):
    promote.promote(models, 1, "stable")
    promote.promote(models, 2, "stable")
    (models / "googlenet" / "1").rename(models / "elsewhere")
    with pytest.raises(
        PipelineError, match=r"no version that is in .*/googlenet was stable before"
    ):
        promote.rollback(models)
    assert served(models).labels == {"stable": 2}
