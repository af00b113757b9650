"""The client."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import grpc

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


class Client(BaseClient):
    """Calls models on TensorFlow Serving. Threads may share it.

        with Client("localhost:8500") as client:
            client.classify("ankle-boot.png").label

    Every method takes what CallOptions lists: `model`, `version` or `version_label`, `timeout`,
    `metadata`. Every method raises a ServerError where a request fails.
    """

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; calls after it raise TFSError."""
        self._closed = True
        for link in self._links:
            link.closed = True
            if link.channel is not None:
                link.channel.close()

    # A path is an iterable of strings too, to a type checker; the first overload that fits counts.
    @overload
    def classify(  # type: ignore[overload-overlap]
        self, images: Image, **options: Unpack[CallOptions]
    ) -> Classification: ...

    @overload
    def classify(
        self,
        images: Iterable[Image],
        *,
        errors: Literal["raise"] = ...,
        **options: Unpack[CallOptions],
    ) -> list[Classification]: ...

    @overload
    def classify(
        self,
        images: Iterable[Image],
        *,
        errors: Literal["return"],
        **options: Unpack[CallOptions],
    ) -> list[Classification | TFSError]: ...

    def classify(
        self, images: Any, *, errors: Errors = "raise", **options: Unpack[CallOptions]
    ) -> Any:
        """The most probable classes of one image or of several.

        Args:
            images: a path, an encoded image (bytes or an open file), a Pillow image, uint8 pixels
                [H,W,3], or an iterable of these; pixels [N,H,W,3] are N images.
            errors: `raise` the first error, or `return` errors in their places: an
                InvalidImageError for a bad image, a ServerError for each image of a request that
                failed.

        Returns:
            One Classification for one image; for several, a list in their order.

        Raises:
            InvalidImageError: an image cannot be read or decoded.
            ServerError: a request failed.
        """
        if not _images.is_single(images):
            stream = self._stream(True, errors)
            return list(self._classify_all(images, stream, self._scope(options)))
        scope = self._scope(options)
        (answer,) = self._run(self._classify_call(scope, [_images.prepare(0, images)]), scope)
        if isinstance(answer, TFSError):
            raise answer
        return answer

    @overload
    def classify_iter(
        self,
        images: Iterable[Image],
        *,
        ordered: bool = ...,
        errors: Literal["raise"] = ...,
        **options: Unpack[CallOptions],
    ) -> Iterator[Classification]: ...

    @overload
    def classify_iter(
        self,
        images: Iterable[Image],
        *,
        ordered: bool = ...,
        errors: Literal["return"],
        **options: Unpack[CallOptions],
    ) -> Iterator[Classification | TFSError]: ...

    def classify_iter(
        self,
        images: Iterable[Image],
        *,
        ordered: bool = True,
        errors: Errors = "raise",
        **options: Unpack[CallOptions],
    ) -> Iterator[Any]:
        """The same for a stream of any length, of which a few requests are held at a time.

        Args:
            images: read as requests become free.
            ordered: results in the order of the images, or as they come; a result's `position`
                says whose it is.
            errors: as in `classify`.

        Raises:
            TypeError: it is one image.
        """
        _images.check_several(images)
        return self._classify_all(images, self._stream(ordered, errors), self._scope(options))

    def predict(
        self,
        inputs: Mapping[str, ArrayLike],
        *,
        signature: str = "",
        outputs: Sequence[str] = (),
        **options: Unpack[CallOptions],
    ) -> Prediction:
        """Any signature with any tensors.

        Args:
            inputs: by name. Arrays of any dtype that TensorFlow has keep it; Python's own numbers
                become float32 and int32, strings bytes.
            signature: its name; the model's default where it is empty.
            outputs: the names of those wanted; all where it is empty. TensorFlow Serving merges
                only requests for all of them into batches.

        Raises:
            TypeError, ValueError: an input is no tensor.
        """
        scope = self._scope(options, signature)
        return self._run(_calls.predict(scope.asked, inputs, outputs), scope)

    def regress(
        self, examples: Iterable[Example], *, signature: str = "", **options: Unpack[CallOptions]
    ) -> Regression:
        """A value for each tf.Example, given as features by name."""
        scope = self._scope(options, signature)
        return self._run(_calls.regress(scope.asked, examples), scope)

    def multi_inference(
        self,
        examples: Iterable[Example],
        tasks: Mapping[str, Literal["classify", "regress"]],
        **options: Unpack[CallOptions],
    ) -> dict[str, list[Classification] | Regression]:
        """Several signatures on the same examples; `tasks` says what each of them does."""
        scope = self._scope(options)
        return self._run(_calls.multi_inference(scope.asked, examples, tasks), scope)

    def metadata(self, **options: Unpack[CallOptions]) -> Metadata:
        """The model's signatures, and the version that they are of."""
        scope = self._scope(options)
        return self._run(_calls.metadata(scope.asked), scope)

    def status(self, **options: Unpack[CallOptions]) -> list[VersionStatus]:
        """The model's versions, highest first; of all of them where no version is given."""
        scope = self._scope(options)
        return self._run(_calls.status(scope.asked), scope)

    def reload_config(self, config: str, **options: Unpack[CallOptions]) -> None:
        """Serve what another models.config says, given as text; returns when its models are loaded.

        Raises:
            TFSError: it is not a models.config.
        """
        scope = self._scope(options)
        return self._run(_calls.reload_config(scope.asked, config), scope)

    def wait_until_ready(
        self, timeout: float = 60.0, *, model: str | None = None, version: int | None = None
    ) -> int:
        """Wait until a version of the model, or the one named, is available; returns its number.

        Raises:
            NotReadyError: none was within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                scope = self._poll(deadline - time.monotonic(), model, version)
                ready, seen = available(self._run(_calls.status(scope.asked), scope))
                if ready is not None:
                    return ready
            except FINAL:
                raise
            except ServerError as error:
                seen = str(error)
            if time.monotonic() + POLL_SECONDS > deadline:
                raise NotReadyError(self.address, model or self.model, timeout, seen)
            time.sleep(POLL_SECONDS)

    def _open(self, target: Target) -> grpc.Channel:
        channel = (
            grpc.secure_channel(target.address, target.credentials, options=target.options)
            if target.credentials
            else grpc.insecure_channel(target.address, options=target.options)
        )
        return grpc.intercept_channel(channel, *self._interceptors)

    def _run(self, call: Call[Result], scope: Scope) -> Result:
        attempts = self._attempts(scope)
        send = self._send if self._hedge is None else self._send_hedged
        failure: ServerError | None = None
        while (left := attempts.begin()) > 0:
            self._check_open()
            try:
                response = send(call, scope, attempts, left)
            except ServerError as error:
                delay = attempts.delay(error.code, error.details)
                if delay is None or self._closed:
                    raise
                failure = error
                time.sleep(delay)
            except ValueError:  # gRPC's word for a closed channel
                self._check_open()
                raise
            else:
                return self._read(call, attempts, response)
        raise failure or self._too_late(call, attempts)  # it may wake when the time is over

    def _send(self, call: Call[Any], scope: Scope, attempts: Attempts[Link], left: float) -> Any:
        sent = self._begin(call, attempts)
        method = sent.link.method(call)
        try:
            response = method(call.request, timeout=left, metadata=self._headers(scope))
        except grpc.RpcError as error:  # what a call raises is a Call too
            self._ended(sent, error.code(), error.details() or "")
            raise self._error(call, attempts, sent.link, error) from error
        self._ended(sent)
        return response

    def _send_hedged(
        self, call: Call[Any], scope: Scope, attempts: Attempts[Link], left: float
    ) -> Any:
        done: queue.SimpleQueue[tuple[Any, Link]] = queue.SimpleQueue()
        started: list[Any] = []

        def start(seconds: float) -> None:
            sent = self._begin(call, attempts)
            method = sent.link.method(call)
            future = method.future(call.request, timeout=seconds, metadata=self._headers(scope))
            started.append(future)

            def ended(future: Any) -> None:
                try:
                    self._ended(sent, future.code(), future.details() or "")
                finally:  # whatever a hook raises
                    done.put((future, sent.link))

            future.add_done_callback(ended)

        start(left)
        try:
            try:
                first, link = done.get(timeout=self._hedge)
            except queue.Empty:
                if attempts.may_copy() and (left := attempts.begin()) > 0:
                    start(left)
                first, link = done.get()
            if len(started) > 1 and first.code() is not grpc.StatusCode.OK:
                first, link = done.get()
            if first.code() is grpc.StatusCode.OK:
                return first.result()
            raise self._error(call, attempts, link, first) from first.exception()
        finally:
            for future in started:
                future.cancel()

    def _classify_all(self, images: Iterable[Any], stream: Stream, scope: Scope) -> Iterator[Any]:
        def send(batch: list[Prepared]) -> tuple[list[Prepared], Any]:
            try:
                return batch, self._run(self._classify_call(scope, batch), scope)
            except TFSError as error:
                return batch, error

        pending: list[Future[tuple[list[Prepared], Any]]] = []
        pool = ThreadPoolExecutor(self._in_flight, thread_name_prefix="tfs-client")

        def results(batches: Iterable[list[Prepared]], most: int) -> Iterator[Any]:
            """Send batches; what is due, until no more than so many requests are under way."""
            for batch in batches:
                pending.append(pool.submit(send, batch))
            while pending and (len(pending) > most or pending[0].done()):
                # In order, what is behind the oldest waits for it, so that it stays bounded.
                awaited = pending[:1] if stream.ordered else pending
                for future in wait(awaited, return_when=FIRST_COMPLETED).done:
                    pending.remove(future)
                    stream.put(*future.result())
                yield from stream.due()
            yield from stream.due()

        failure: Exception | None = None
        iterator = enumerate(images)
        try:
            while True:
                try:
                    position, image = next(iterator)
                except StopIteration:
                    break
                except Exception as error:  # the images' own: after the answers before it
                    failure = error
                    break
                yield from results(stream.take(position, image), self._in_flight - 1)
            yield from results(stream.rest(), 0)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failure:
            raise failure
