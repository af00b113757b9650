"""Which models and versions to serve: models.config, in TensorFlow Serving's format."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2
from tensorflow_serving.config.file_system_storage_path_source_pb2 import (
    FileSystemStoragePathSourceConfig,
)

from serving.errors import ConfigError

_Policy: TypeAlias = FileSystemStoragePathSourceConfig.ServableVersionPolicy


@dataclass(frozen=True)
class ModelConfig:
    """One model.

    Attributes:
        name: what requests call it.
        base_path: the directory that holds its version directories.
        policy: a ServableVersionPolicy message: latest (the default), all or specific.
        labels: version label -> version.
    """

    name: str
    base_path: Path
    policy: _Policy = field(default_factory=_Policy)
    labels: dict[str, int] = field(default_factory=dict)

    def wanted(self, found: list[int]) -> list[int]:
        """The versions, of those found (ascending), that the policy serves."""
        kind = self.policy.WhichOneof("policy_choice")
        if kind == "all":
            return found
        if kind == "specific":
            return [version for version in found if version in self.policy.specific.versions]
        return found[-(self.policy.latest.num_versions or 1) :]


def read(path: Path) -> list[ModelConfig]:
    """The models of a file.

    Raises:
        ConfigError: no such file, not in that format, or a model without a name or base path, or
            with another's name.
    """
    try:
        message = text_format.Parse(path.read_text(), model_server_config_pb2.ModelServerConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ConfigError(f"model config file {path}: {error}") from error
    models = [_model(config, path) for config in message.model_config_list.config]
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"model config file {path}: two models are named {name}")
    if not models:
        raise ConfigError(f"model config file {path}: it names no model")
    return models


def _model(config: model_server_config_pb2.ModelConfig, path: Path) -> ModelConfig:
    if not config.name or not config.base_path:
        raise ConfigError(
            f"model config file {path}: a model needs a name and a base_path, not "
            f"{text_format.MessageToString(config, as_one_line=True)!r}"
        )
    return ModelConfig(
        config.name,
        Path(config.base_path),
        config.model_version_policy,
        dict(config.version_labels),
    )
