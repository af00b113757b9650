"""Senders at work until the windows agree -> a Measurement."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tfs_client._errors import TFSError
from tfs_client._options import Timeout
from tfs_client.bench import sender
from tfs_client.bench.loads import Closed, Load, Replay, Steps
from tfs_client.bench.machine import ProcessorTime
from tfs_client.bench.payloads import Payload
from tfs_client.bench.sender import AGREEING, Report, Task
from tfs_client.bench.windows import Window, one_after_another, percentile

AGREE = 0.10  # of the mean of the last windows, at the most
MOST_WINDOWS = 10
CHECK = 10  # of so many answers one is compared
PATIENCE_SECONDS = 60.0  # beyond what senders take by themselves
LEAD_SECONDS = 0.1  # for all senders to hear of a task before it begins
LEAST_WINDOW = 0.1  # of a load that has an end; a replay may be of one moment

# A sender that is later than both of these, or busier, is itself what is measured. Where a server
# with dozens of threads has the same cores, 10 ms are nothing beside its own latency.
MOST_LAG_SECONDS, MOST_LAG_SHARE, LAG_PERCENTILE = 0.010, 0.05, 99.0
MOST_PROCESSOR = 0.9  # of a core
# From here on a row says so: figures of another moment will be others, whatever was changed.
MUCH_STOLEN = 0.1


@dataclass
class Measurement:
    """A load and what came back.

    Attributes:
        load: what was sent, as text.
        batch: images in a request.
        windows: all senders' together, in order.
        processor: the largest share of a core that a sender used.
        steady: whether the last windows agreed; None for a load that changes by itself.
        seed: of the moments.
        closed: whether it was callers who waited.
        amount: callers, or requests a second that were meant to be sent; None for other loads.
        stolen: share of the processors' time that the host of this machine gave to others.
    """

    load: str
    batch: int
    windows: list[Window]
    processor: float
    steady: bool | None
    seed: int = 0
    closed: bool = False
    amount: float | None = None
    stolen: float = 0.0
    _whole: Window | None = field(default=None, repr=False)

    @property
    def whole(self) -> Window:
        """All windows as one."""
        if self._whole is None:
            self._whole = one_after_another(self.windows)
        return self._whole

    @property
    def lag(self) -> float:
        """What 99 of a hundred requests were late at the most because of the sender, in seconds."""
        found = self.whole.lag
        return found.get_value_at_percentile(LAG_PERCENTILE) / 1e6 if found.total_count else 0.0

    @property
    def bad(self) -> int:
        """Requests that failed or were answered wrongly."""
        return self.whole.wrong + self.whole.errors.total()

    @property
    def invalid(self) -> str:
        """Why this says nothing about the server; empty if it does."""
        median = percentile(self.whole.latency, 50) or 0.0
        if self.lag > max(MOST_LAG_SECONDS, MOST_LAG_SHARE * median):
            return f"the sender was {1e3 * self.lag:.0f} ms late"
        if self.processor > MOST_PROCESSOR:
            return f"the sender used {100 * self.processor:.0f} % of a core"
        return ""

    @property
    def verdict(self) -> str:
        """What is wrong with the measurement; empty for nothing."""
        if self.invalid:
            return f"INVALID: {self.invalid}, so that it was the limit"
        if self.steady is False:
            return f"not steady: the last {AGREEING} windows differ by more than {AGREE:.0%}"
        return ""

    @property
    def remark(self) -> str:
        """What else its reader should know; empty for nothing."""
        if self.stolen < MUCH_STOLEN:
            return ""
        return f"the host took {self.stolen:.0%} of the processors' time"

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "load": self.load,
            "batch": self.batch,
            "windows": [window.to_json() for window in self.windows],
            "sender_processor": self.processor,
            "steady": self.steady,
            "seed": self.seed,
            "closed": self.closed,
            "amount": self.amount,
            "stolen": self.stolen,
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Measurement:
        """The opposite."""
        return cls(
            found["load"],
            found["batch"],
            [Window.from_json(window) for window in found["windows"]],
            found["sender_processor"],
            found["steady"],
            found["seed"],
            found["closed"],
            found["amount"],
            found.get("stolen", 0.0),  # earlier reports have none
        )


def together(measurements: Sequence[Measurement]) -> Measurement:
    """Repeated measurements of one load as one."""
    first = measurements[0]
    steady = None if first.steady is None else all(each.steady for each in measurements)
    return Measurement(
        first.load,
        first.batch,
        [window for each in measurements for window in each.windows],
        max(each.processor for each in measurements),
        steady,
        first.seed,
        first.closed,
        first.amount,
        max(each.stolen for each in measurements),
    )


class Senders:
    """Processes that send one set of payloads; see `senders`."""

    def __init__(self, pipes: Sequence[Any], batch: int, timeout: float) -> None:
        self._pipes = pipes
        self._batch = batch
        self._timeout = timeout

    def measure(
        self,
        load: Load,
        window: float,
        *,
        warm_up: float | None = None,
        most: int = MOST_WINDOWS,
        least: int = AGREEING,
        seed: int = 0,
        check: int = CHECK,
        on_window: Callable[[int, Window], None] = lambda *_: None,
    ) -> Measurement:
        """Send a load and record what comes back.

        Every window counts, from the end of the warm-up on, also those before windows agreed: to
        leave some out would hide a stall.

        Args:
            load: what to send.
            window: seconds of each; less for a load that has an end, which the last shares.
            warm_up: seconds before the first, as long as a window if not given.
            most: windows, after which it ends however they differ.
            least: windows.
            seed: of the moments.
            check: of so many answers one is compared with the expected one.
            on_window: told of each, by its number.

        Raises:
            TFSError: a sender ended.
        """
        changes = isinstance(load, (Steps, Replay))
        if isinstance(load, (Steps, Replay)):
            warm_up, least = 0.0, 1
            most = max(1, -int(-load.seconds // window))
            window = max(LEAST_WINDOW, load.seconds / most)  # the last ends with the load
        warm_up = window if warm_up is None else warm_up
        begin = time.monotonic() + LEAD_SECONDS + warm_up
        task = Task(load, begin, warm_up, window, most, seed, check)
        self._tell(task)
        before = ProcessorTime.now()
        steady: bool | None = None
        for passed in range(1, most + 1):
            last, _ = self._hear(warm_up + window)
            on_window(passed, last[-1])
            steady = None if changes else agree(last)
            stop = passed == most or (passed >= least and bool(steady))
            self._tell("stop" if stop else "go on")
            if stop:
                break
        windows, processor = self._hear(self._timeout)
        amount = getattr(load, "callers", None) or getattr(load, "rate", None)
        closed = isinstance(load, Closed)
        stolen = ProcessorTime.now().stolen_since(before)
        return Measurement(
            str(load), self._batch, windows, processor, steady, seed, closed, amount, stolen
        )

    def _tell(self, message: Task | str) -> None:
        for pipe in self._pipes:
            try:
                pipe.send(message)
            except OSError as error:
                raise TFSError("a sender ended early") from error

    def _hear(self, seconds: float) -> tuple[list[Window], float]:
        """The next report of all, as one; it is due in so many seconds."""
        merged: list[Window] = []
        processor = 0.0
        for pipe in self._pipes:
            try:
                if not pipe.poll(seconds + PATIENCE_SECONDS):
                    raise TFSError("a sender does not answer")
                report: Report = pipe.recv()
            except (EOFError, OSError) as error:
                raise TFSError("a sender ended early") from error
            found = [Window.from_json(window) for window in report.windows]
            processor = max(processor, report.processor)
            if not merged:
                merged = found
                continue
            for into, window in zip(merged, found, strict=True):
                into.merge(window)
        return merged, processor


@contextmanager
def senders(
    settings: dict[str, Any], payloads: Sequence[Payload], count: int = 1
) -> Iterator[Senders]:
    """Start sender processes, and end them.

    Args:
        settings: of AsyncClient.
        payloads: sent in turn.
        count: of processes.

    Raises:
        TFSError: one does not start.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for index in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=sender.main, args=(theirs, settings, payloads, index, count), daemon=True
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            if not pipe.poll(PATIENCE_SECONDS):
                raise TFSError("a sender did not start")
            try:
                pipe.recv()
            except EOFError as error:
                raise TFSError("a sender did not start: see its error above") from error
        timeout = Timeout.of(settings.get("timeout", Timeout())).request
        yield Senders(pipes, payloads[0].images, timeout)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.terminate()
            process.join()


def agree(windows: Sequence[Window]) -> bool:
    """Whether throughput and median latency of the last windows are within 10 % of their mean."""
    last = windows[-AGREEING:]
    medians = [percentile(window.latency, 50) or 0.0 for window in last]
    rates = [window.images_per_second for window in last]
    return len(last) == AGREEING and _alike(medians) and _alike(rates)


def _alike(values: Sequence[float]) -> bool:
    mean = sum(values) / len(values)
    return min(values) > 0 and all(abs(value - mean) <= AGREE * mean for value in values)
