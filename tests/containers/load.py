"""Callers as an application's: threads that share a `tfs_client.Client` and note what came back."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tfs_client import Client, Hooks, Retry, TFSError
from tfs_client.bench import payloads

IMAGES = 8


@dataclass
class Load:
    """What callers did so far.

    Attributes:
        answered: calls, by the moment (monotonic) of their answers.
        failed: calls that raised, by what they said.
        wrong: answers that were not the expected ones.
        again: attempts that failed and were made again or not, by their status.
    """

    answered: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    again: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def since(self, moment: float) -> int:
        """Answers after a moment."""
        return sum(at > moment for at in list(self.answered))

    @property
    def gap(self) -> float:
        """The longest time without an answer, in seconds."""
        moments = sorted(self.answered)
        return max((b - a for a, b in itertools.pairwise(moments)), default=0.0)

    def __str__(self) -> str:
        calls = len(self.answered) + self.failed.total()
        text = f"{calls:,} calls, {self.failed.total()} failed, {self.wrong} wrong"
        again = ", ".join(f"{count} {code}" for code, count in self.again.items()) or "none"
        return f"{text}; attempts sent again: {again}"


@contextmanager
def load(
    address: str | Sequence[str],
    callers: int = 8,
    *,
    pause: float = 0.0,
    retry: Retry | None = None,
) -> Iterator[Load]:
    """Callers at work while the block runs; when it is left, every call has been answered.

    They send a few images in turn; each answer is compared with its image's first.

    Args:
        address: what Client takes.
        callers: threads.
        pause: seconds of each after an answer.
        retry: the client's own if not given.
    """
    done, stop = Load(), threading.Event()

    def told(event) -> None:
        if event.code.value[0]:
            with done._lock:
                done.again[event.code.name] += 1

    settings = {} if retry is None else {"retry": retry}
    with Client(address, hooks=Hooks(on_response=told), **settings) as client:
        client.wait_until_ready(60)
        *_, pictures = payloads.inputs(client.metadata(), "encoded", ())
        del pictures[IMAGES:]
        expected = [client.classify(picture).label for picture in pictures]

        def caller(number: int) -> None:
            while not stop.wait(pause):
                number = (number + 1) % IMAGES
                try:
                    label = client.classify(pictures[number]).label
                except TFSError as error:
                    with done._lock:
                        done.failed[str(error)] += 1
                    continue
                with done._lock:
                    done.wrong += label != expected[number]
                    done.answered.append(time.monotonic())

        threads = [threading.Thread(target=caller, args=(n,), daemon=True) for n in range(callers)]
        for thread in threads:
            thread.start()
        try:
            yield done
        finally:
            stop.set()
            for thread in threads:
                thread.join()
