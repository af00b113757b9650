"""TLS, mutual TLS, authorities, tokens."""

import grpc
import pytest
import trustme
from tfs_client import TLS, TFSError, UnavailableError
from tfs_client.__main__ import main
from tfs_client.testing import FakeServer

TOKEN = "s3cret-t0ken"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def ca(authority, tmp_path_factory):
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


def credentials(authority, name, mutual=False):
    leaf = authority.issue_cert(name)
    pair = (leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes())
    roots = authority.cert_pem.bytes() if mutual else None
    return grpc.ssl_server_credentials([pair], roots, mutual)


def test_a_server_is_checked_against_ones_own_authority(connect, authority, ca):
    with FakeServer(credentials=credentials(authority, "localhost")) as server:
        assert connect(server.address, tls=TLS(ca=ca)).classify(b"x").label == "cat"
        assert connect(server.address, tls=TLS(ca=ca.read_bytes())).classify(b"x").label == "cat"
        for other in (TLS(), TLS(ca=trustme.CA().cert_pem.bytes()), None):
            with pytest.raises(UnavailableError):
                connect(server.address, tls=other, timeout=5).classify(b"x")


def test_both_sides_may_be_checked(connect, authority, ca, tmp_path):
    mine = authority.issue_cert("me@example.org")
    mine.private_key_pem.write_to_path(tmp_path / "me.key")
    mine.cert_chain_pems[0].write_to_path(tmp_path / "me.pem")
    with FakeServer(credentials=credentials(authority, "localhost", mutual=True)) as server:
        tls = TLS(ca, tmp_path / "me.pem", tmp_path / "me.key")
        assert connect(server.address, tls=tls).classify(b"x").label == "cat"
        with pytest.raises(UnavailableError):
            connect(server.address, tls=TLS(ca), timeout=5).classify(b"x")


def test_a_server_may_have_another_name_than_its_address(connect, authority, ca):
    with FakeServer(credentials=credentials(authority, "model.example.org")) as server:
        client = connect(server.address, tls=TLS(ca), authority="model.example.org")
        assert client.classify(b"x").label == "cat"
        with pytest.raises(UnavailableError):
            connect(server.address, tls=TLS(ca), timeout=5).classify(b"x")


def test_the_command_may_name_it(authority, ca, capsys):
    with FakeServer(credentials=credentials(authority, "model.example.org")) as server:
        arguments = ["status", "--address", server.address, "--ca", str(ca), "--timeout", "5"]
        assert main([*arguments, "--authority", "model.example.org"]) == 0
        assert main(arguments) == 3
    assert capsys.readouterr().out == "googlenet version 1: AVAILABLE\n"


def test_a_token_goes_with_every_request_and_is_asked_for_anew(connect, authority, ca):
    tokens = iter(["first", "second", "third"])
    with FakeServer(credentials=credentials(authority, "localhost")) as server:
        client = connect(server.address, tls=TLS(ca), token=lambda: next(tokens))
        server.fail()
        client.classify(b"x")
        client.status()
        sent = [request.metadata["authorization"] for request in server.requests]
        assert sent == ["Bearer first", "Bearer second", "Bearer third"]


def test_no_secret_goes_in_the_clear_unless_asked(connect, server):
    with pytest.raises(TFSError, match=r"a token would be sent in the clear: use tls=TLS"):
        connect(server.address, token=TOKEN)
    secret = [("Authorization".lower(), f"Bearer {TOKEN}")]
    with pytest.raises(TFSError, match="authorization metadata"):
        connect(server.address, metadata=secret)
    client = connect(server.address)
    with pytest.raises(TFSError, match="plaintext_token=True") as caught:
        client.classify(b"x", metadata=secret)
    assert TOKEN not in str(caught.value)
    assert not server.requests
    asked = connect(server.address, token=TOKEN, plaintext_token=True)
    asked.classify(b"x")
    assert server.requests[0].metadata["authorization"] == f"Bearer {TOKEN}"


def test_no_secret_is_shown(connect, server, authority):
    leaf = authority.issue_cert("me@example.org")
    key, certificate = leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes()
    tls = TLS(certificate=certificate, key=key)
    client = connect(server.address, token=TOKEN, plaintext_token=True)
    server.fail(grpc.StatusCode.UNAUTHENTICATED)
    with pytest.raises(TFSError) as caught:
        client.classify(b"x")
    shown = repr(client) + repr(tls) + str(tls) + repr(caught.value) + str(caught.value)
    assert TOKEN not in shown
    assert "PRIVATE" not in shown
    assert repr(TLS("ca.pem", "me.pem", "me.key")) == "TLS(ca='ca.pem', certificate='me.pem')"


@pytest.mark.parametrize("name", ["ca", "certificate", "key"])
def test_a_file_that_is_none_is_named(connect, tmp_path, name, authority):
    leaf = authority.issue_cert("me@example.org")
    good = {
        "ca": authority.cert_pem.bytes(),
        "certificate": leaf.cert_chain_pems[0].bytes(),
        "key": leaf.private_key_pem.bytes(),
    }
    with pytest.raises(TFSError, match=f"TLS {name} .*missing.*: cannot be read: No such file"):
        connect("localhost:1", tls=TLS(**{**good, name: tmp_path / "missing.pem"}))
    (tmp_path / "junk.pem").write_text("junk")
    with pytest.raises(TFSError, match=rf"TLS {name}: .*junk\.pem.* is not PEM"):
        connect("localhost:1", tls=TLS(**{**good, name: tmp_path / "junk.pem"}))


def test_the_text_of_a_key_is_not_shown():
    text = "-----BEGIN PRIVATE KEY-----\nMIISECRET"
    with pytest.raises(TFSError, match="give it as bytes") as caught:
        TLS(certificate=b"-----BEGIN", key=text).credentials()
    assert "SECRET" not in str(caught.value)
    with pytest.raises(TFSError, match="cannot be read"):
        TLS(ca="a\0b").credentials()


def test_a_token_is_text_on_one_line(connect, server):
    client = connect(server.address, token=f"{TOKEN}\n", plaintext_token=True)
    client.status()
    assert server.requests[0].metadata["authorization"] == f"Bearer {TOKEN}"
    for token in ("a\nb", "ä", lambda: None):
        with pytest.raises(TypeError, match="the token is not printable"):
            connect(server.address, token=token, plaintext_token=True).status()


def test_a_certificate_needs_its_key():
    with pytest.raises(ValueError, match="certificate and key go together"):
        TLS(certificate="me.pem")
