"""TLS with certificates made here: the server's, and a client's where it asks for one."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from serving import __main__ as main
from serving import grpc_api
from serving.errors import ConfigError
from serving.grpc_api import Options
from serving.metrics import Metrics

TIMEOUT = 20


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def ssl_config(path: Path, issued: trustme.LeafCert, *, trusted: trustme.CA | None = None) -> Path:
    """An SSLConfig file as TensorFlow Serving's: with the texts of PEM files."""

    def quoted(*blobs: trustme.Blob) -> str:
        return b"".join(blob.bytes() for blob in blobs).decode().replace("\n", "\\n")

    text = f"""
        server_key: "{quoted(issued.private_key_pem)}"
        server_cert: "{quoted(*issued.cert_chain_pems)}"
    """
    if trusted:
        text += f'custom_ca: "{quoted(trusted.cert_pem)}" client_verify: true'
    path.write_text(text)
    return path


@contextlib.contextmanager
def serving(repository, add_version, config: Path) -> Iterator[str]:
    """Yields its address; on a UNIX socket beside the file it answers as well."""
    add_version(1)
    served = repository()
    served.start()
    socket = str(config.with_name("socket"))
    options = Options(socket_path=socket, credentials=main._credentials(config))
    server, port = grpc_api.start_server(served, Metrics(), options)
    try:
        yield f"localhost:{port}"
    finally:
        server.stop(0).wait(TIMEOUT)


def state(address: str, credentials: grpc.ChannelCredentials | None) -> int:
    """A model's state, asked for with these credentials, or in plain text."""
    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = "affine"
    named = (("grpc.ssl_target_name_override", "localhost"),)  # a socket's path is no host
    made = (
        grpc.secure_channel(address, credentials, named)
        if credentials
        else grpc.insecure_channel(address)
    )
    with made as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        return stub.GetModelStatus(asked, timeout=TIMEOUT).model_version_status[0].state


AVAILABLE = get_model_status_pb2.ModelVersionStatus.State.AVAILABLE


@contextlib.contextmanager
def refused() -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_who_trusts_the_servers_certificate_is_answered(
    repository, add_version, tmp_path, authority
):
    config = ssl_config(tmp_path / "ssl.config", authority.issue_cert("localhost"))
    trusting = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    another = grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes())
    with serving(repository, add_version, config) as address:
        for each in (address, f"unix:{tmp_path}/socket"):
            assert state(each, trusting) == AVAILABLE
            with refused():
                state(each, another)
            with refused():
                state(each, None)


def test_a_client_shows_a_certificate_of_whom_the_server_trusts(
    repository, add_version, tmp_path, authority
):
    clients = trustme.CA()
    issued = authority.issue_cert("localhost")
    config = ssl_config(tmp_path / "ssl.config", issued, trusted=clients)

    def with_certificate_of(signer: trustme.CA) -> grpc.ChannelCredentials:
        own = signer.issue_cert("client@example.org")
        return grpc.ssl_channel_credentials(
            authority.cert_pem.bytes(),
            own.private_key_pem.bytes(),
            own.cert_chain_pems[0].bytes(),
        )

    with serving(repository, add_version, config) as address:
        assert state(address, with_certificate_of(clients)) == AVAILABLE
        with refused():
            state(address, with_certificate_of(trustme.CA()))
        with refused():
            state(address, grpc.ssl_channel_credentials(authority.cert_pem.bytes()))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "needs server_key and server_cert"),
        ('server_key: "k"', "needs server_key and server_cert"),
        ('server_key: "k" server_cert: "c" client_verify: true', "client_verify needs custom_ca"),
        ("server_keys: 1", "server_keys"),
    ],
)
def test_a_config_that_cannot_be_is_named(tmp_path, text, words):
    path = tmp_path / "ssl.config"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        main._credentials(path)
    assert str(path) in str(caught.value)


def test_texts_that_are_no_certificates_are_refused(repository, add_version, tmp_path):
    path = tmp_path / "ssl.config"
    path.write_text('server_key: "nonsense" server_cert: "nonsense"')
    with (
        pytest.raises(ConfigError, match="mend --ssl_config_file"),
        serving(repository, add_version, path),
    ):
        pass
