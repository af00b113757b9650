"""A process that waits, warmed up, until it is asked to measure a few seconds of training.

Several of them take turns, so that what the machine does beside them strikes all alike. A worker is
a module of its own, run as

    python -m MODULE '{"batch_size": 32, …}'

that calls `serve`. It answers lines of JSON with lines of JSON:

    → {"data": "synthetic", "seconds": 5.0}
    ← {"ready": {"torch": "2.13.0"}}, then {"images": 640, "seconds": 5.1} for every request
    ← {"error": "why not"}, and the worker ends

and ends with its standard input, so that it does not outlive its caller. Frameworks are not
imported here: some cannot share a process.
"""

import contextlib
import ctypes
import gc
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from pipeline.errors import PipelineError

# Of steps before those measured, and no more than of those: memory is claimed, data is read ahead.
SETTLE_SECONDS = 2.0
LEAST_STEPS = 2  # to settle, and to measure
WARM_UP_SECONDS = 1200.0  # longest wait for a first step; compilers are slow on few cores
ANSWER_SECONDS = 300.0  # longest wait for an answer beyond the time asked for

Step = Callable[[], int]  # makes one training step; returns how many images it took
Data = Mapping[str, Callable[[], Step]]  # name -> opens that data, for steps from now on


class WorkerError(PipelineError):
    """A worker could not start, or did not answer."""


class Worker:
    """The caller's end of a worker; a context manager, behind which no process is left.

    Args:
        module: what the worker runs.
        settings: its own, as JSON values.

    Attributes:
        versions: of the libraries that it runs on, by name; once it is warm.
    """

    def __init__(self, module: str, settings: Mapping[str, object]) -> None:
        self.versions: dict[str, str] = {}
        # What frameworks leave there when they are killed, compiled code for instance.
        self._temporary = tempfile.TemporaryDirectory()
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        # A session of its own: Ctrl-C is the caller's, and compilers that it starts end with it.
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"TMPDIR": self._temporary.name},
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()  # "" is the end
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def warm_up(self) -> None:
        """Wait until it has made its first steps.

        Raises:
            WorkerError: it cannot.
        """
        self.versions = self._answer(WARM_UP_SECONDS)["ready"]

    def measure(self, data: str, seconds: float) -> float:
        """Train for so long; images per second.

        Raises:
            WorkerError: it failed, or has ended.
        """
        stdin = self._process.stdin
        assert stdin
        with contextlib.suppress(BrokenPipeError):  # then there is no answer, and a reason
            stdin.write(json.dumps({"data": data, "seconds": seconds}) + "\n")
            stdin.flush()
        answer = self._answer(ANSWER_SECONDS + seconds)
        return answer["images"] / answer["seconds"]

    def close(self) -> None:
        """End the process and all that it started; it has nothing to lose."""
        if self._process.returncode is not None:
            return
        # Until the process is waited for, its number cannot become another's.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._errors.close()
        self._temporary.cleanup()

    def _read(self) -> None:
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def _answer(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise WorkerError(f"no answer for {seconds:.0f} s") from None
        if not line:
            raise WorkerError(f"it ended: {self._last_error()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return lines[-1] if lines else "it printed nothing"


def serve(versions: Mapping[str, str], start: Callable[[dict[str, Any]], Data]) -> int:
    """The worker's own end: warm up, measure what is asked for, until standard input ends.

    Args:
        versions: of the libraries it runs on.
        start: from the settings on the command line, what can be trained on.

    Returns:
        The exit code.
    """
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print there

        def answer(**values: object) -> None:
            print(json.dumps(values), file=answers, flush=True)

        try:
            data = start(json.loads(sys.argv[1]))
            for opened in data.values():
                _measure(opened, 0.0)
            _give_back_memory()
            answer(ready=dict(versions))
            for line in sys.stdin:
                request = json.loads(line)
                images, seconds = _measure(data[request["data"]], request["seconds"])
                _give_back_memory()
                answer(images=images, seconds=seconds)
        except Exception as error:  # whatever a framework raises: it is reported, never fatal
            answer(error=_first_line(error))
            return 1
    return 0


def _measure(opened: Callable[[], Step], seconds: float) -> tuple[int, float]:
    """Images trained on, and in how many seconds; whole steps."""
    step = opened()
    _repeat(step, min(SETTLE_SECONDS, seconds))
    return _repeat(step, seconds)


def _repeat(step: Step, seconds: float) -> tuple[int, float]:
    images = steps = 0
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds or steps < LEAST_STEPS:
        images += step()
        steps += 1
    return images, passed


def _give_back_memory() -> None:
    """Make room for the other workers; readers that are no longer used end as well."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc's
        ctypes.CDLL(None).malloc_trim(0)


def _first_line(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}".strip()
    return next((line for line in text.splitlines() if line.strip(": ")), text)
