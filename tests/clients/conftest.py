"""Clients of both kinds behind one face, and a server without TensorFlow.

What is in this folder and takes `connect` runs where only the client is installed too: see
test_isolation.py.
"""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tfs_client import AsyncClient, Client
from tfs_client.testing import FakeServer

SECONDS = 30.0


class Blocking:
    """An AsyncClient whose methods wait, so that one test serves both."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.client = AsyncClient(*arguments, **settings)
        self.loop = asyncio.new_event_loop()

    def wait(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, SECONDS))

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        if name == "classify_iter":
            return lambda *arguments, **options: self._each(method(*arguments, **options))
        if inspect.iscoroutinefunction(method):
            return lambda *arguments, **options: self.wait(method(*arguments, **options))
        return method

    def __repr__(self) -> str:
        return repr(self.client)

    def _each(self, answers: Any) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self.wait(anext(answers))
                except StopAsyncIteration:
                    return
        finally:
            self.wait(answers.aclose())

    def close(self) -> None:
        self.wait(self.client.close())


@pytest.fixture(params=[Client, Blocking], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Make clients; they are closed when the test ends."""
    made: list[Any] = []

    def make(*arguments: Any, **settings: Any) -> Any:
        made.append(request.param(*arguments, **settings))
        return made[-1]

    yield make
    for client in made:
        client.close()
        if isinstance(client, Blocking):
            client.loop.run_until_complete(client.loop.shutdown_asyncgens())
            client.loop.close()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as started:
        yield started
