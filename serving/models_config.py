"""Which models and versions to serve: models.config, in TensorFlow Serving's format."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from tensorflow_serving.config import model_server_config_pb2
from tensorflow_serving.config.file_system_storage_path_source_pb2 import (
    FileSystemStoragePathSourceConfig,
)

from serving import config_files
from serving.errors import ConfigError, ServingError, invalid_argument

TENSORFLOW = "tensorflow"
_Policy: TypeAlias = FileSystemStoragePathSourceConfig.ServableVersionPolicy


@dataclass(frozen=True)
class ModelConfig:
    """One model.

    Attributes:
        name: what requests call it.
        base_path: the directory that holds its version directories; absolute.
        policy: a ServableVersionPolicy message: latest (the default), all or specific.
        labels: version label -> version.
        platform: `tensorflow` is the only one that can be served.

    Raises:
        ServingError: INVALID_ARGUMENT, the base path is not absolute.
    """

    name: str
    base_path: Path
    policy: _Policy = field(default_factory=_Policy)
    labels: dict[str, int] = field(default_factory=dict)
    platform: str = TENSORFLOW

    def __post_init__(self) -> None:
        if not self.base_path.is_absolute():
            shown = "" if self.base_path == Path() else self.base_path
            raise invalid_argument(
                f"Expected model {self.name} to have an absolute path or URI; got "
                f"base_path()={shown}"
            )

    def wanted(self, found: list[int]) -> list[int]:
        """The versions, of those found (ascending), that the policy serves."""
        kind = self.policy.WhichOneof("policy_choice")
        if kind == "all":
            return found
        if kind == "specific":
            return [version for version in found if version in self.policy.specific.versions]
        return found[-(self.policy.latest.num_versions or 1) :]


def read(path: Path) -> list[ModelConfig] | None:
    """The models of a file; None where it says nothing: a server that waits to be told.

    Raises:
        ConfigError: no such file, not in that format, or a model that cannot be served.
    """
    message = config_files.parse(path, model_server_config_pb2.ModelServerConfig())
    kind = message.WhichOneof("config")
    if kind is None:
        return None
    if kind != "model_config_list":
        raise ConfigError(f"{path}: {kind} cannot be served; list the models in model_config_list")
    try:
        models = from_messages(message.model_config_list.config)
        check_platforms(models, {})
    except ServingError as error:
        raise ConfigError(f"{path}: {error}") from error
    return models


def from_messages(configs: Iterable[model_server_config_pb2.ModelConfig]) -> list[ModelConfig]:
    """The models of a ModelConfigList.

    Raises:
        ServingError: INVALID_ARGUMENT, a model lacks something, or has another's name.
    """
    models: dict[str, ModelConfig] = {}
    for config in configs:
        if config.name in models:
            raise invalid_argument(
                f"Illegal to list model {config.name} multiple times in config list"
            )
        if config.HasField("logging_config"):
            raise invalid_argument(
                f"Model {config.name} has a logging_config: No request-logger-creator provided."
            )
        if config.model_type and config.model_platform:
            raise invalid_argument(
                "Illegal setting both ModelServerConfig::model_type (deprecated) and "
                f"ModelServerConfig::model_platform, model name is {config.name}"
            )
        models[config.name] = ModelConfig(
            config.name,
            Path(config.base_path.removeprefix("file://")),
            config.model_version_policy,
            dict(config.version_labels),
            config.model_platform or _platform(config.model_type),
        )
    return list(models.values())


def _platform(model_type: int) -> str:
    """By the number that was used before platforms had names."""
    if model_type == model_server_config_pb2.ModelType.OTHER:
        raise invalid_argument(f"ModelServerConfig::model_type choice {model_type} not supported.")
    return TENSORFLOW if model_type == model_server_config_pb2.ModelType.TENSORFLOW else ""


def check_platforms(models: list[ModelConfig], served: dict[str, ModelConfig]) -> None:
    """See that every model is TensorFlow's, and stays of its platform.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    for model in models:
        if not model.platform:
            raise invalid_argument(
                "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
                f"ModelServerConfig::model_platform, model name is {model.name}"
            )
        old = served.get(model.name, model).platform
        if old != model.platform:
            raise invalid_argument(
                f"Illegal to change a model's platform. For model {model.name} platform was {old} "
                f"and new platform requested is {model.platform}"
            )
        if model.platform != TENSORFLOW:
            raise invalid_argument(
                f"Model {model.name} requests unsupported platform {model.platform}"
            )
