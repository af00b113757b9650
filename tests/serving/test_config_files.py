from pathlib import Path

import pytest

from serving import config_files
from serving.errors import ConfigError

TEXTS = {
    "BatchingParameters": """
        max_batch_size { value: 8 } allowed_batch_sizes: 4 allowed_batch_sizes: 8
        pad_variable_length_inputs: true thread_pool_name { value: "pool" }
        enable_large_batch_splitting { value: true }
    """,
    "SSLConfig": """
        server_key: "key\\nof two lines" server_cert: "cert" custom_ca: "ca" client_verify: true
    """,
    "MonitoringConfig": 'prometheus_config { enable: true path: "/metrics" }',
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.config"


def test_batching_parameters_are_read(file):
    file.write_text(TEXTS["BatchingParameters"])
    message = config_files.read(file, "BatchingParameters")
    assert message.max_batch_size.value == 8
    assert list(message.allowed_batch_sizes) == [4, 8]
    assert message.pad_variable_length_inputs
    assert message.thread_pool_name.value == "pool"
    assert message.enable_large_batch_splitting.value
    assert not message.HasField("num_batch_threads")  # so the default holds


def test_an_ssl_config_is_read(file):
    file.write_text(TEXTS["SSLConfig"])
    message = config_files.read(file, "SSLConfig")
    assert message.server_key == "key\nof two lines"
    assert (message.server_cert, message.custom_ca) == ("cert", "ca")
    assert message.client_verify


def test_a_monitoring_config_is_read(file):
    file.write_text(TEXTS["MonitoringConfig"])
    message = config_files.read(file, "MonitoringConfig")
    assert message.prometheus_config.enable
    assert message.prometheus_config.path == "/metrics"


@pytest.mark.parametrize("name", TEXTS)
def test_an_empty_file_is_a_message_of_defaults(file, name):
    file.write_text("# nothing\n")
    assert not config_files.read(file, name).ListFields()


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no_such_field: 1", "no_such_field"),
        (b"\xff\xfe", "codec"),
        (b"{", "1:1"),
        (None, "No such"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(file, name, content, words):
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        config_files.read(file, name)
    assert str(file) in str(caught.value)
