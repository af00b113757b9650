"""What a repository's servers load, and which versions are `stable` and `canary`: models.config.

The file is TensorFlow Serving's own. It loads the labelled versions and the one that a roll-back
would go to, so that a roll-back is immediate. `history.json` beside it has what the file cannot
carry: the versions that were stable before, the latest last.
"""

import dataclasses
import json
from dataclasses import dataclass

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from pipeline.config import MODEL_NAME
from pipeline.errors import PipelineError
from pipeline.repository import Repository

LABELS = ("canary", "stable")
CONFIG, HISTORY = "models.config", "history.json"
_HEADER = "# Written by `python -m pipeline promote` and `rollback`; comments are not kept.\n"


@dataclass(frozen=True)
class Served:
    """What servers are to do.

    Attributes:
        labels: label -> version.
        versions: the versions to load, ascending.
    """

    labels: dict[str, int]
    versions: tuple[int, ...]

    def of(self, version: int) -> list[str]:
        """A version's labels."""
        return sorted(label for label, number in self.labels.items() if number == version)

    def loading(self, *versions: int) -> "Served":
        """The same with further versions loaded."""
        return dataclasses.replace(self, versions=tuple(sorted({*self.versions, *versions})))

    def labelled(self, label: str, version: int) -> "Served":
        """With a label moved, and nothing loaded that has no label."""
        labels = {**self.labels, label: version}
        return Served(labels, tuple(sorted(set(labels.values()))))


def read(store: Repository) -> Served:
    """What models.config says of the model; nothing is labelled where there is no such file.

    Raises:
        PipelineError: it cannot be read.
    """
    config = _model(_message(store))
    versions = config.model_version_policy.specific.versions
    return Served(dict(config.version_labels), tuple(versions))


def write(store: Repository, served: Served) -> None:
    """Replace models.config; other models in it stay as they are."""
    message = _message(store)
    config = _model(message)
    try:
        config.base_path = store.base_path
    except UnicodeEncodeError as error:
        raise PipelineError(
            f"{store.place!r} is not in UTF-8, as paths in {CONFIG} are: rename it"
        ) from error
    config.model_platform = "tensorflow"
    config.model_version_policy.Clear()
    config.model_version_policy.specific.versions.extend(served.versions)
    config.version_labels.clear()
    config.version_labels.update(served.labels)
    store.write(CONFIG, _HEADER + text_format.MessageToString(message))


def read_history(store: Repository) -> list[int]:
    """The versions that were stable before, the latest last.

    Raises:
        PipelineError: history.json cannot be read.
    """
    try:
        text = store.read(HISTORY)
        return [int(version) for version in json.loads(text)["stable"]] if text is not None else []
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise PipelineError(
            f"{store.place}/{HISTORY} is broken ({error}): mend or remove it"
        ) from error


def write_history(store: Repository, stable: list[int]) -> None:
    """Replace history.json."""
    store.write(HISTORY, json.dumps({"stable": stable}) + "\n")


def earlier(history: list[int], stable: int | None) -> list[int]:
    """The history up to the version that was stable before `stable`.

    The history is written before a promotion and after a roll-back; if either was killed in
    between, it ends with the version that is stable now.
    """
    while history and history[-1] == stable:
        history = history[:-1]
    return history


def stable_before(store: Repository, stable: int | None) -> list[int]:
    """The published versions that were stable before the one that is, the latest last.

    Raises:
        PipelineError: history.json cannot be read.
    """
    published = store.versions()
    return earlier([version for version in read_history(store) if version in published], stable)


def _message(store: Repository) -> model_server_config_pb2.ModelServerConfig:
    try:
        text = store.read(CONFIG) or ""
        message = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except (UnicodeDecodeError, text_format.ParseError) as error:
        raise PipelineError(
            f"{store.place}/{CONFIG} is not a model server's configuration ({error}): mend or "
            "remove it"
        ) from error
    if message.HasField("custom_model_config"):
        raise PipelineError(f"{store.place}/{CONFIG} lists no models but a custom_model_config")
    return message


def _model(message: model_server_config_pb2.ModelServerConfig):
    """The model's own entry, made if there is none."""
    for config in message.model_config_list.config:
        if config.name == MODEL_NAME:
            return config
    return message.model_config_list.config.add(name=MODEL_NAME)
