"""The threads that answer calls: as many as wait for the model, but only a few at work.

Python runs one thread at a time. Dozens that are at work do little but take its lock from each
other; docs/performance.md has what two at work are worth.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures

AT_WORK = 2  # one in Python, and one in gRPC's C core

_own = threading.local()


class Workers(futures.Executor):
    """An executor of at most so many threads, which end with the process."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tasks: deque[Callable[[], None]] = deque()
        self._idle: list[threading.Lock] = []  # the last one's memory is still in the cache
        self._threads = self._at_work = 0
        self._lock = threading.Lock()

    def submit(self, fn, /, *args, **kwargs) -> futures.Future:
        """As any executor's."""
        future: futures.Future = futures.Future()

        def task() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # whoever waits for the future gets it
                future.set_exception(error)

        with self._lock:
            self._tasks.append(task)
            self._call_another()
        return future

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """While one of the threads is in here, another may be at work."""
        with self._lock:
            self._at_work -= 1
            self._call_another()
        try:
            yield
        finally:
            with self._lock:
                self._at_work += 1

    def _call_another(self) -> None:
        """Another thread, if there is work for it."""
        if not self._tasks or self._at_work >= AT_WORK:
            return
        if self._idle:
            self._at_work += 1
            self._idle.pop().release()
        elif self._threads < self._most:
            self._at_work += 1
            self._threads += 1
            threading.Thread(target=self._work, name="grpc", daemon=True).start()

    def _work(self) -> None:
        _own.workers = self
        called = threading.Lock()
        called.acquire()
        while True:
            with self._lock:
                task = self._tasks.popleft() if self._tasks and self._at_work <= AT_WORK else None
                if task is None:
                    self._at_work -= 1
                    self._idle.append(called)
            if task is None:
                called.acquire()
            else:
                task()


def aside() -> contextlib.AbstractContextManager[None]:
    """Around what waits, or computes outside of Python; no matter on which thread."""
    workers: Workers | None = getattr(_own, "workers", None)
    return workers.aside() if workers else contextlib.nullcontext()
