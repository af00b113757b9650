"""What TensorFlow Serving answers, asked of the embedded server: recorded cases, shared servers."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.serving.conformance import exchange, servers
from tests.serving.conformance.servers import Server

FLAGS, CASES = servers.load()


@pytest.fixture(scope="module")
def server() -> Iterator[Callable[[str], Server]]:
    """The server of a set of flags, started when it is first asked for."""
    running: dict[str, Server] = {}
    with contextlib.ExitStack() as stack:

        def started(name: str) -> Server:
            if name not in running:
                running[name] = stack.enter_context(servers.launched(FLAGS[name]))
                servers.wait_until_ready(running[name], FLAGS[name])
            return running[name]

        yield started


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c["id"]) for c in CASES if not servers.of_its_own(c)]
)
def test_as_recorded(case, server):
    assert exchange.run(server(case["server"]), case) == []
