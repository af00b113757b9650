"""The mtls component: what its init container writes is what both servers read."""

import subprocess

import pytest
import trustme
from tfs_client import TLS, Client, TFSError

from serving import config_files
from tests.conftest import ROOT
from tests.k8s.manifests import K8S, read
from tests.serving.processes import serving

MODELS = ROOT / "tests/serving/conformance/models"


@pytest.fixture
def ssl_config(tmp_path):
    """The file, and the authority, as the script makes it of cert-manager's files."""
    authority = trustme.CA()
    issued = authority.issue_cert("googlenet-grpc", "localhost")
    folder = tmp_path / "certificates"
    folder.mkdir()
    issued.private_key_pem.write_to_path(folder / "tls.key")
    for pem in issued.cert_chain_pems:
        pem.write_to_path(folder / "tls.crt", append=True)
    authority.cert_pem.write_to_path(folder / "ca.crt")
    (patch,) = read(K8S / "components/mtls/server.yaml")
    (container,) = patch["spec"]["template"]["spec"]["initContainers"]
    shell, flags = container["command"]
    (script,) = container["args"]
    (tmp_path / "ssl").mkdir()
    for mount in container["volumeMounts"]:
        script = script.replace(f" {mount['mountPath']}/", f" {tmp_path}{mount['mountPath']}/")
    subprocess.run([shell, flags, script], check=True, timeout=10)
    return tmp_path / "ssl/ssl.config", folder, authority


def test_the_config_holds_the_files_texts(ssl_config):
    file, folder, _ = ssl_config
    config = config_files.read(file, "SSLConfig")
    assert config.server_key == (folder / "tls.key").read_text()
    assert config.server_cert == (folder / "tls.crt").read_text()
    assert config.custom_ca == (folder / "ca.crt").read_text()
    assert config.client_verify is True


def test_who_has_a_certificate_is_answered_and_nobody_else(ssl_config, tmp_path):
    file, folder, authority = ssl_config
    own = authority.issue_cert("googlenet-client")
    own.private_key_pem.write_to_path(tmp_path / "client.key")
    own.cert_chain_pems[0].write_to_path(tmp_path / "client.crt")
    flags = ["--model_name=affine", f"--model_base_path={MODELS / 'affine'}"]
    with serving(*flags, f"--ssl_config_file={file}") as server:
        address = f"localhost:{server.port}"
        root = folder / "ca.crt"
        known = TLS(root, certificate=tmp_path / "client.crt", key=tmp_path / "client.key")
        with Client(address, "affine", tls=known) as client:
            assert client.status()
        with Client(address, "affine", tls=TLS(root), timeout=3) as client, pytest.raises(TFSError):
            client.status()
