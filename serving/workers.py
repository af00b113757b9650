"""The threads that answer calls: as many as wait for the model, but only a few at work.

Python runs one thread at a time. Dozens that are at work do little but take its lock from each
other; docs/performance.md has what two at work are worth.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures

AT_WORK = 2  # one in Python, and one in gRPC's C core
QUICK_SECONDS = 0.001  # handing over to another thread takes up to as long
LONG_SECONDS = 0.01  # until it is the turn of those who wait, however quick it was last time

_own = threading.local()


class Workers(futures.Executor):
    """An executor of at most so many threads, which end with the process."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tasks: deque[Callable[[], None]] = deque()
        self._idle: list[threading.Lock] = []  # the last one's memory is still in the cache
        self._threads = self._at_work = 0
        # Those who compute and count as at work, since when.
        self._staying: dict[object, float] = {}
        self._lock = threading.Lock()
        self._crowded = threading.Event()  # somebody waits for those at work
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

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

    @contextlib.contextmanager
    def staying(self) -> Iterator[None]:
        """As `aside`, but only once it takes long."""
        this = object()
        self._staying[this] = time.monotonic()
        try:
            yield
        finally:
            if self._staying.pop(this, None) is None:  # it has been put aside
                with self._lock:
                    self._at_work += 1

    def _watch(self) -> None:
        """See that those who wait do not wait for long, also when no further call comes."""
        while True:
            self._crowded.wait()
            time.sleep(LONG_SECONDS)
            with self._lock:
                self._crowded.clear()
                for _ in range(AT_WORK):
                    self._call_another()
                if self._tasks:  # they need not have found it crowded
                    self._crowded.set()

    def _put_aside(self) -> None:
        """Those who have computed for long."""
        long_ago = time.monotonic() - LONG_SECONDS
        for each, since in self._staying.copy().items():
            if since < long_ago and self._staying.pop(each, None) is not None:
                self._at_work -= 1

    def _call_another(self) -> None:
        """Another thread, if there is work for it."""
        if not self._tasks:
            return
        if self._at_work >= AT_WORK:
            self._put_aside()
        if self._at_work >= AT_WORK:
            self._crowded.set()
        elif self._idle:
            self._at_work += 1
            self._idle.pop().release()
        elif self._threads < self._most:
            try:
                threading.Thread(target=self._work, name="grpc", daemon=True).start()
            except RuntimeError:  # a container's limit; it may be otherwise the next time
                self._crowded.set()
                return
            self._at_work += 1
            self._threads += 1

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
                _own.receiving = contextlib.ExitStack()
                _own.receiving.enter_context(self.staying())
                task()
                received()


def received() -> None:
    """The call that this thread answers is here whole, which takes as long as its sender likes."""
    receiving: contextlib.ExitStack | None = getattr(_own, "receiving", None)
    if receiving:
        receiving.close()


def aside() -> contextlib.AbstractContextManager[None]:
    """Around what waits, or computes outside of Python; no matter on which thread."""
    workers: Workers | None = getattr(_own, "workers", None)
    return workers.aside() if workers else contextlib.nullcontext()


class Computation:
    """What is computed again and again: it goes aside, unless it was quick the last time."""

    def __init__(self) -> None:
        self._quick = False

    @contextlib.contextmanager
    def once(self) -> Iterator[None]:
        """Around one of them, no matter on which thread."""
        workers: Workers | None = getattr(_own, "workers", None)
        began = time.perf_counter()
        with workers.staying() if workers and self._quick else aside():
            yield
        self._quick = time.perf_counter() - began < QUICK_SECONDS
