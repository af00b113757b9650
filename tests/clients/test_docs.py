"""docs/client.md: every example runs, and prints what it says."""

import re
from contextlib import ExitStack

import grpc
import numpy as np
import pytest
import trustme
from tfs_client._errors import BY_CODE
from tfs_client.testing import FakeServer

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "client.md").read_text()
EXAMPLES = dict(re.findall(r"^## ([^\n]+)\n\n```python\n(.*?)```", PAGE, re.S | re.M))


def said(code: str) -> list[str]:
    """What the remarks say is printed."""
    return re.findall(r"(?:^ *|print\(.*\)  )# (.*)$", code, re.M)


def answer(image):
    return None if image == b"junk" else [("ankle boot", 0.9), ("bag", 0.1)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the examples' files are."""
    (tmp_path / "photos").mkdir()
    for name in ("ankle-boot.png", "bag.jpg", "photos/1.jpg", "photos/2.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    me = authority.issue_cert("me@example.org")
    me.private_key_pem.write_to_path(tmp_path / "me.key")
    me.cert_chain_pems[0].write_to_path(tmp_path / "me.pem")
    monkeypatch.chdir(tmp_path)
    return authority


def credentials(authority: trustme.CA) -> grpc.ServerCredentials:
    leaf = authority.issue_cert("localhost")
    pair = (leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes())
    return grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), True)


def test_there_are_ten():
    assert len(EXAMPLES) == 10


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_prints_what_it_says(title, folder, capsys):
    code = EXAMPLES[title]
    with ExitStack() as stack:

        def address(match: re.Match[str]) -> str:
            server = FakeServer(
                answer,
                model="affine" if "affine" in code else "googlenet",
                predict=(lambda _, inputs: {"y": 0.5 * inputs["x"] + np.float32(2)})
                if "affine" in code
                else None,
                versions=(1, 7),
                labels={"stable": 1},
                credentials=credentials(folder) if "TLS" in code else None,
            )
            stack.enter_context(server)
            return f'"{match[1] or ""}{server.address}"'

        code = re.sub(r'"(dns:///)?[a-z-]+:8500"', address, code)
        exec(compile(code, title, "exec"), {})
    assert capsys.readouterr().out.splitlines() == said(EXAMPLES[title])


def test_the_table_of_errors_is_whole():
    rows = re.findall(r"^\| ([A-Z_, ]+) \| `(\w+)` \|$", PAGE, re.M)
    table = {code: error for codes, error in rows for code in codes.split(", ")}
    assert table == {code.name: error.__name__ for code, error in BY_CODE.items()}
