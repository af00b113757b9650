"""The client for asyncio; each method is as Client's, where its text is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import grpc
import grpc.aio

from tfs_client import _calls, _images
from tfs_client._attempts import Attempts
from tfs_client._base import FINAL, POLL_SECONDS, BaseClient, Errors, Scope, Stream, available
from tfs_client._calls import Call, Example
from tfs_client._channels import Link, Target
from tfs_client._errors import NotReadyError, ServerError, TFSError
from tfs_client._images import Image, Prepared
from tfs_client._options import CallOptions
from tfs_client._results import Classification, Metadata, Prediction, Regression, VersionStatus

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from typing_extensions import Unpack

Result = TypeVar("Result")
Images = Iterable[Image] | AsyncIterable[Image]


class AsyncClient(BaseClient):
    """Calls models on TensorFlow Serving from one event loop.

    async with AsyncClient("localhost:8500") as client:
        (await client.classify("ankle-boot.png")).label
    """

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls after it raise TFSError."""
        self._closed = True
        for link in self._links:
            link.closed = True
            if link.channel is not None:
                await link.channel.close()

    @overload
    async def classify(  # type: ignore[overload-overlap]
        self, images: Image, **options: Unpack[CallOptions]
    ) -> Classification: ...

    @overload
    async def classify(
        self,
        images: Images,
        *,
        errors: Literal["raise"] = ...,
        **options: Unpack[CallOptions],
    ) -> list[Classification]: ...

    @overload
    async def classify(
        self, images: Images, *, errors: Literal["return"], **options: Unpack[CallOptions]
    ) -> list[Classification | TFSError]: ...

    async def classify(
        self, images: Any, *, errors: Errors = "raise", **options: Unpack[CallOptions]
    ) -> Any:
        """As Client.classify; the images may come from an asynchronous iterator too."""
        if not _images.is_single(images):
            answers = self._classify_all(images, self._stream(True, errors), self._scope(options))
            return [answer async for answer in answers]
        scope = self._scope(options)
        prepared = await _reading(images, _images.prepare, 0, images)
        (answer,) = await self._run(self._classify_call(scope, [prepared]), scope)
        if isinstance(answer, TFSError):
            raise answer
        return answer

    @overload
    def classify_iter(
        self,
        images: Images,
        *,
        ordered: bool = ...,
        errors: Literal["raise"] = ...,
        **options: Unpack[CallOptions],
    ) -> AsyncIterator[Classification]: ...

    @overload
    def classify_iter(
        self,
        images: Images,
        *,
        ordered: bool = ...,
        errors: Literal["return"],
        **options: Unpack[CallOptions],
    ) -> AsyncIterator[Classification | TFSError]: ...

    def classify_iter(
        self,
        images: Images,
        *,
        ordered: bool = True,
        errors: Errors = "raise",
        **options: Unpack[CallOptions],
    ) -> AsyncIterator[Any]:
        """As Client.classify_iter; the images may come from an asynchronous iterator too."""
        _images.check_several(images)
        return self._classify_all(images, self._stream(ordered, errors), self._scope(options))

    async def predict(
        self,
        inputs: Mapping[str, ArrayLike],
        *,
        signature: str = "",
        outputs: Sequence[str] = (),
        **options: Unpack[CallOptions],
    ) -> Prediction:
        """As Client.predict."""
        scope = self._scope(options, signature)
        return await self._run(_calls.predict(scope.asked, inputs, outputs), scope)

    async def regress(
        self, examples: Iterable[Example], *, signature: str = "", **options: Unpack[CallOptions]
    ) -> Regression:
        """As Client.regress."""
        scope = self._scope(options, signature)
        return await self._run(_calls.regress(scope.asked, examples), scope)

    async def multi_inference(
        self,
        examples: Iterable[Example],
        tasks: Mapping[str, Literal["classify", "regress"]],
        **options: Unpack[CallOptions],
    ) -> dict[str, list[Classification] | Regression]:
        """As Client.multi_inference."""
        scope = self._scope(options)
        return await self._run(_calls.multi_inference(scope.asked, examples, tasks), scope)

    async def metadata(self, **options: Unpack[CallOptions]) -> Metadata:
        """As Client.metadata."""
        scope = self._scope(options)
        return await self._run(_calls.metadata(scope.asked), scope)

    async def status(self, **options: Unpack[CallOptions]) -> list[VersionStatus]:
        """As Client.status."""
        scope = self._scope(options)
        return await self._run(_calls.status(scope.asked), scope)

    async def reload_config(self, config: str, **options: Unpack[CallOptions]) -> None:
        """As Client.reload_config."""
        scope = self._scope(options)
        return await self._run(_calls.reload_config(scope.asked, config), scope)

    async def wait_until_ready(
        self, timeout: float = 60.0, *, model: str | None = None, version: int | None = None
    ) -> int:
        """As Client.wait_until_ready."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                scope = self._poll(deadline - time.monotonic(), model, version)
                ready, seen = available(await self._run(_calls.status(scope.asked), scope))
                if ready is not None:
                    return ready
            except FINAL:
                raise
            except ServerError as error:
                seen = str(error)
            if time.monotonic() + POLL_SECONDS > deadline:
                raise NotReadyError(self.address, model or self.model, timeout, seen)
            await asyncio.sleep(POLL_SECONDS)

    def _open(self, target: Target) -> grpc.aio.Channel:
        if target.credentials:
            return grpc.aio.secure_channel(
                target.address,
                target.credentials,
                options=target.options,
                interceptors=self._interceptors,
            )
        return grpc.aio.insecure_channel(
            target.address, options=target.options, interceptors=self._interceptors
        )

    async def _run(self, call: Call[Result], scope: Scope) -> Result:
        attempts = self._attempts(scope)
        send = self._send if self._hedge is None else self._send_hedged
        failure: ServerError | None = None
        while (left := attempts.begin()) > 0:
            self._check_open()
            try:
                response = await send(call, scope, attempts, left)
            except ServerError as error:
                delay = attempts.delay(error.code, error.details)
                if delay is None or self._closed:
                    raise
                failure = error
                await asyncio.sleep(delay)
            except asyncio.CancelledError:
                if not _is_cancelled():  # but the channel is closed, of which gRPC makes the same
                    self._check_open()
                raise
            except Exception:
                self._check_open()
                raise
            else:
                return self._read(call, attempts, response)
        raise failure or self._too_late(call, attempts)  # it may wake when the time is over

    async def _send(
        self, call: Call[Any], scope: Scope, attempts: Attempts[Link], left: float
    ) -> Any:
        sent = self._begin(call, attempts)
        method = sent.link.method(call)
        try:
            response = await method(call.request, timeout=left, metadata=self._headers(scope))
        except grpc.aio.AioRpcError as error:
            self._ended(sent, error.code(), error.details() or "")
            raise self._error(call, attempts, sent.link, error) from error
        except asyncio.CancelledError:
            self._ended(sent, grpc.StatusCode.CANCELLED)
            raise
        self._ended(sent)
        return response

    async def _send_hedged(
        self, call: Call[Any], scope: Scope, attempts: Attempts[Link], left: float
    ) -> Any:
        started = {asyncio.create_task(self._send(call, scope, attempts, left))}
        pending = started
        try:
            done, pending = await asyncio.wait(started, timeout=self._hedge)
            if not done and attempts.may_copy() and (left := attempts.begin()) > 0:
                copy = asyncio.create_task(self._send(call, scope, attempts, left))
                pending = pending | {copy}
            while pending and not any(map(_answered, done)):
                more, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                done |= more
            return max(done, key=_answered).result()
        finally:
            for task in pending:
                task.cancel()

    async def _classify_all(self, images: Any, stream: Stream, scope: Scope) -> AsyncIterator[Any]:
        async def send(batch: list[Prepared]) -> tuple[list[Prepared], Any]:
            try:
                return batch, await self._run(self._classify_call(scope, batch), scope)
            except TFSError as error:
                return batch, error

        pending: list[asyncio.Task[tuple[list[Prepared], Any]]] = []

        async def results(batches: Iterable[list[Prepared]], most: int) -> AsyncIterator[Any]:
            """Send batches; what is due, until no more than so many requests are under way."""
            for batch in batches:
                pending.append(asyncio.create_task(send(batch)))
            while pending and (len(pending) > most or pending[0].done()):
                # In order, what is behind the oldest waits for it, so that it stays bounded.
                awaited = pending[:1] if stream.ordered else pending
                done, _ = await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    pending.remove(task)
                    stream.put(*task.result())
                for answer in stream.due():
                    yield answer
            for answer in stream.due():
                yield answer

        failure: Exception | None = None
        iterator = _each(images)
        position = 0
        try:
            while True:
                try:
                    image = await anext(iterator)
                except StopAsyncIteration:
                    break
                except Exception as error:  # the images' own: after the answers before it
                    failure = error
                    break
                batches = await _reading(image, stream.take, position, image)
                async for answer in results(batches, self._in_flight - 1):
                    yield answer
                position += 1
            async for answer in results(stream.rest(), 0):
                yield answer
        finally:
            await iterator.aclose()
            for task in pending:
                task.cancel()
        if failure:
            raise failure


async def _reading(image: Any, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function that reads an image, in a thread where that means a file."""
    if _images.is_in_memory(image):
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)


def _answered(task: asyncio.Task[Any]) -> bool:
    return not task.cancelled() and task.exception() is None


def _is_cancelled() -> bool:
    """Whether somebody cancelled the task; Python 3.10 cannot tell."""
    task = asyncio.current_task()
    return bool(task and getattr(task, "cancelling", lambda: 0)())


async def _each(images: Any) -> AsyncGenerator[Any, None]:
    if hasattr(images, "__aiter__"):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image
