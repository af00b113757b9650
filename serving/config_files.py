"""TensorFlow Serving's configuration files, in protobuf's text format.

The tensorflow-serving-api package has the message of models.config only; those of the others are
made here from their field numbers.
"""

import functools
from pathlib import Path
from typing import TypeVar

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)
from google.protobuf.message import Message

from serving.errors import ConfigError

_PACKAGE = "googlenet_serving"
# Message -> field -> (number, type); a type with a capital is a message.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    # servables/tensorflow/session_bundle_config.proto
    "BatchingParameters": {
        "max_batch_size": (1, "Int64Value"),
        "batch_timeout_micros": (2, "Int64Value"),
        "max_enqueued_batches": (3, "Int64Value"),
        "num_batch_threads": (4, "Int64Value"),
        "allowed_batch_sizes": (5, "repeated int64"),
        "pad_variable_length_inputs": (6, "bool"),
        "thread_pool_name": (7, "StringValue"),
        "enable_large_batch_splitting": (9, "BoolValue"),
        "max_execution_batch_size": (10, "Int64Value"),
    },
    # config/ssl_config.proto
    "SSLConfig": {
        "server_key": (1, "string"),
        "server_cert": (2, "string"),
        "custom_ca": (3, "string"),
        "client_verify": (4, "bool"),
    },
    # config/monitoring_config.proto
    "PrometheusConfig": {"enable": (1, "bool"), "path": (2, "string")},
    "MonitoringConfig": {"prometheus_config": (1, "PrometheusConfig")},
}
_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {"bool": _FIELD.TYPE_BOOL, "int64": _FIELD.TYPE_INT64, "string": _FIELD.TYPE_STRING}

AnyMessage = TypeVar("AnyMessage", bound=Message)


def read(path: Path, name: str):
    """The message `name` of this module's table, from a file.

    Raises:
        ConfigError: no such file, or it is not in that format.
    """
    return parse(path, _classes()[name]())


def parse(path: Path, message: AnyMessage) -> AnyMessage:
    """A message, filled in from a file.

    Raises:
        ConfigError: no such file, or it is not in that format.
    """
    try:
        return text_format.Parse(path.read_text(), message)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ConfigError(f"{path}: {error}") from error


@functools.cache
def _classes() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3"
    )
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            _add_field(message, field, number, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


def _add_field(message, name: str, number: int, kind: str) -> None:
    field = message.field.add(name=name, number=number, label=_FIELD.LABEL_OPTIONAL)
    if kind.startswith("repeated "):
        field.label, kind = _FIELD.LABEL_REPEATED, kind.removeprefix("repeated ")
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        package = _PACKAGE if kind in _MESSAGES else "google.protobuf"
        field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".{package}.{kind}"
