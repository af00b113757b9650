"""A process that sends requests and records what comes back; `measure` starts them.

It speaks gRPC with bytes that were made beforehand, on one event loop: about 120 µs of processor
time a request, nearly all of it gRPC's. A request's latency counts from the moment it was meant to
be sent, also when the sender itself was late (coordinated omission: Tene, "How NOT to measure
latency", 2013).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import selectors
import signal
import time
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio

from tfs_client._aio import AsyncClient
from tfs_client._calls import Call
from tfs_client._errors import Asked
from tfs_client.bench.loads import Closed, Load, Open
from tfs_client.bench.payloads import Payload
from tfs_client.bench.windows import Window, record

PREDICT = "/tensorflow.serving.PredictionService/Predict"
NICENESS = -10
MUCH = 0.5  # of a core
PAUSE_SECONDS = 0.1  # of a caller after a failed request, so that a dead server is not hammered
AGREEING = 3  # windows, and the measurement has lasted long enough
TICK_SECONDS = 0.02  # between looks at how late the event loop is, where nothing else tells


class Task(NamedTuple):
    """What one sender is to do.

    Attributes:
        load: all senders' together.
        begin: when the first window does, by the monotonic clock, which all processes share.
        warm_up: seconds before that.
        window: seconds of each.
        most: windows.
        seed: of the moments.
        check: of so many answers one is compared with the expected one.
    """

    load: Load
    begin: float
    warm_up: float
    window: float
    most: int
    seed: int
    check: int


class Report(NamedTuple):
    """What a sender says when a window has passed, or at the end of all.

    Attributes:
        windows: the last three, some of whose requests may still be under way; at the end, all.
        processor: share of a core that the sender used since the first window began.
    """

    windows: list[dict[str, Any]]
    processor: float


def main(
    pipe: Connection, settings: dict[str, Any], payloads: Sequence[Payload], index: int, count: int
) -> None:
    """Do tasks that come through a pipe until it is closed.

    Args:
        pipe: Task in; a Report for each window, and a last one, out; "stop" in ends a task early.
        settings: of AsyncClient.
        payloads: sent in turn.
        index: which of the senders this is, from 0.
        count: how many there are.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this one
    os.setsid()
    gc.freeze()  # a look at all that was imported would be lag
    # select(2) wakes to the microsecond, epoll to the millisecond.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    asyncio.set_event_loop(loop)
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):  # the parent ended
        loop.run_until_complete(_tasks(pipe, settings, payloads, index, count))


def _go_first(niceness: int) -> None:
    """Before a server that has the same cores, where that is allowed; 0 for turn and turn about.

    Linux shares cores between sessions first (https://man7.org/linux/man-pages/man7/sched.7.html,
    "The autogroup feature"), so that it is the session's niceness that counts.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(niceness))


async def _tasks(
    pipe: Connection, settings: dict[str, Any], payloads: Sequence[Payload], index: int, count: int
) -> None:
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()
    loop.add_reader(pipe.fileno(), arrived.set)
    async with AsyncClient(**settings) as client:
        wire = _Wire(client, payloads, index)
        pipe.send("ready")
        while True:
            await arrived.wait()
            arrived.clear()
            while pipe.poll():
                message = pipe.recv()
                if isinstance(message, Task):
                    _go_first(NICENESS)
                    await _Run(pipe, message, wire, index, count).whole(arrived)


class _Bytes:
    """An answer that is not parsed."""

    @staticmethod
    def FromString(response: bytes) -> bytes:  # noqa: N802 - as protobuf calls it
        return response


class _Wire:
    """Payloads in turn, over the connections in turn."""

    def __init__(self, client: AsyncClient, payloads: Sequence[Payload], index: int) -> None:
        call: Call[Any] = Call(PREDICT, Asked(client.model, None, ""), b"", _Bytes, bytes)
        self._headers = grpc.aio.Metadata(*client._headers(client._scope({})))
        self._timeout = client._timeout.request
        self._methods = itertools.cycle([link.method(call) for link in client._links])
        first = index % len(payloads)  # senders do not all begin with the same
        self._payloads = itertools.cycle([*payloads[first:], *payloads[:first]])

    def send(self) -> tuple[Payload, Awaitable[bytes]]:
        """One request, and its answer."""
        payload = next(self._payloads)
        method = next(self._methods)
        return payload, method(payload.request, timeout=self._timeout, metadata=self._headers)


@dataclass
class _Run:
    """One task being done."""

    pipe: Connection
    task: Task
    wire: _Wire
    index: int
    count: int
    windows: list[Window] = field(default_factory=list)
    stopped: bool = False

    async def whole(self, arrived: asyncio.Event) -> None:
        """From the warm-up to the last answer."""
        task = self.task
        self.windows = [Window(task.window) for _ in range(task.most)]
        work = asyncio.create_task(
            self._callers(task.load) if isinstance(task.load, Closed) else self._arrivals(task.load)
        )
        watch = asyncio.create_task(self._watch())
        began, before = time.monotonic(), time.process_time()
        try:
            await _until(task.begin)
            share = (time.process_time() - before) / (time.monotonic() - began)
            # Where thousands of answers a second interrupt the server, both do more for each, and
            # callers have no moments to keep.
            if isinstance(task.load, Closed) and share > MUCH:
                _go_first(0)
            before = time.process_time()
            for passed in range(1, task.most + 1):
                await _until(task.begin + passed * task.window)
                used = (time.process_time() - before) / (passed * task.window)
                self._say(self.windows[max(0, passed - AGREEING) : passed], used)
                if await self._told_to_stop(arrived, passed):
                    break
            self.stopped = True
            watch.cancel()
            await work
        finally:
            work.cancel()
            watch.cancel()
        self._say(self.windows[:passed], used)

    def _say(self, windows: Sequence[Window], processor: float) -> None:
        self.pipe.send(Report([window.to_json() for window in windows], processor))

    async def _told_to_stop(self, arrived: asyncio.Event, passed: int) -> bool:
        """What the parent makes of the windows so far; until it says so, requests go on."""
        while not self.pipe.poll():
            await arrived.wait()
            arrived.clear()
        return self.pipe.recv() == "stop" or passed == self.task.most

    def _window(self, moment: float) -> Window | None:
        """The window that a moment is in; None before the first and after the last."""
        number = int((moment - self.task.begin) // self.task.window)
        return self.windows[number] if 0 <= number < len(self.windows) else None

    async def _callers(self, load: Closed) -> None:
        own = len(range(self.index, load.callers, self.count))
        await asyncio.gather(*(self._caller() for _ in range(own)))

    async def _caller(self) -> None:
        end = self.task.begin + self.task.most * self.task.window
        while (now := time.monotonic()) < end and not self.stopped:
            if not await self._request(now):
                await asyncio.sleep(PAUSE_SECONDS)

    async def _arrivals(self, load: Open) -> None:
        start = self.task.begin - self.task.warm_up
        under_way: set[asyncio.Task[bool]] = set()
        try:
            for at in itertools.islice(self._moments(load), self.index, None, self.count):
                await _until(start + at)
                if self.stopped:
                    break
                if window := self._window(start + at):
                    record(window.lag, time.monotonic() - start - at)
                request = asyncio.create_task(self._request(start + at))
                under_way.add(request)
                request.add_done_callback(under_way.discard)
            await asyncio.gather(*under_way)
        finally:
            for request in under_way:
                request.cancel()

    def _moments(self, load: Open) -> Iterator[float]:
        most = self.task.warm_up + self.task.most * self.task.window
        return itertools.takewhile(lambda at: at < most, load.moments(self.task.seed))

    async def _request(self, meant: float) -> bool:
        """Send one, and record it in the window in which it was meant to be sent."""
        window = self._window(meant)
        if window:
            window.sent += 1
        try:
            payload, answer = self.wire.send()
            response = await answer
        except grpc.aio.AioRpcError as error:
            if window:
                window.errors[f"{error.code().name}: {error.details()}"] += 1
            return False
        now = time.monotonic()
        if ended := self._window(now):
            ended.completed += payload.images
        if window:
            if window.latency.total_count % self.task.check == 0:
                window.wrong += not payload.is_right(response)
            record(window.latency, now - meant)
        return True

    async def _watch(self) -> None:
        """How late the event loop is, where requests themselves do not tell."""
        if not isinstance(self.task.load, Closed):
            return
        while True:
            meant = time.monotonic() + TICK_SECONDS
            await _until(meant)
            if window := self._window(meant):
                record(window.lag, time.monotonic() - meant)


async def _until(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - time.monotonic()))
