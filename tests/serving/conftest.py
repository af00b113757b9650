import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.engine import Servable
from serving.models_config import ModelConfig
from serving.repository import Polling, Repository


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Callable[..., Repository]]:
    """A repository of tmp_path/affine, polled by the test itself."""
    stop = threading.Event()

    def make(polling: Polling = Polling(seconds=0, load_retries=0), **config) -> Repository:  # noqa: B008
        model = ModelConfig("affine", tmp_path / "affine", **config)
        return Repository([model], Servable, polling, stop)

    yield make
    stop.set()
