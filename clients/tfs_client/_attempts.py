"""How often a request is sent, and how long all of it may take; nothing here waits or sends."""

from __future__ import annotations

import threading
import time
from typing import Generic, TypeVar

import grpc

from tfs_client._options import Retry, Timeout

Link = TypeVar("Link")

_BURST = 100.0  # retries and hedges that are saved up
_REST_SECONDS = 1.0
_TOO_LARGE = "larger than max"  # gRPC's words, on either side


class Budget:
    """Retries and hedges that the requests so far have earned; threads may share it."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._saved = _BURST if share else 0.0
        self._lock = threading.Lock()

    def earn(self) -> None:
        """A request is made."""
        if self._saved < _BURST:
            with self._lock:
                self._saved = min(_BURST, self._saved + self._share)

    def spend(self) -> bool:
        """Whether one more may be sent."""
        with self._lock:
            if self._saved < 1:
                return False
            self._saved -= 1
            return True


def call_deadline(timeout: Timeout) -> float:
    """When a call that starts now must have ended, on time.monotonic's clock."""
    return time.monotonic() + timeout.total if timeout.total is not None else float("inf")


class Attempts(Generic[Link]):
    """The attempts of one request.

    Attributes:
        made: so far.
        link: that the last one went through.
    """

    def __init__(
        self, retry: Retry, budget: Budget, timeout: Timeout, deadline: float, servers: int
    ) -> None:
        self._retry = retry
        # Each server is asked once before none is said to be there.
        self._tries_to_connect = max(retry.attempts, servers) if retry.attempts > 1 else 1
        self._budget = budget
        self._deadline = min(deadline, time.monotonic() + timeout.request)
        self.made = 0
        self.link: Link | None = None
        budget.earn()

    def begin(self) -> float:
        """Count one more; returns the seconds that are left for it, 0 or less for none."""
        self.made += 1
        return self._deadline - time.monotonic()

    def may_copy(self) -> bool:
        """Whether a second copy of a slow request may be sent."""
        return self.made < self._retry.attempts and self._budget.spend()

    def delay(self, code: grpc.StatusCode, details: str) -> float | None:
        """Seconds to wait before the next; None where there is none."""
        retry = self._retry
        unavailable = code is grpc.StatusCode.UNAVAILABLE
        most = self._tries_to_connect if unavailable else retry.attempts
        if code not in retry.codes or self.made >= most or _TOO_LARGE in details:
            return None
        longest = min(retry.max_delay, retry.first_delay * 2 ** (self.made - 1))
        import random  # nothing else needs it

        delay = random.uniform(0, longest)
        if time.monotonic() + delay >= self._deadline or not self._budget.spend():
            return None
        return delay


class Rotation(Generic[Link]):
    """Which of several connections is next: in turn, past those that failed a moment ago."""

    def __init__(self, links: list[Link]) -> None:
        self._links = links
        self._resting: dict[int, float] = {}
        self._next = 0

    def next(self, avoid: Link | None = None) -> Link:
        """The next one that is not to be avoided and does not rest, or else whose turn it is."""
        first = self._next
        self._next = first + 1  # two threads may get the same: no harm
        links = self._links
        if self._resting or avoid is not None:
            now = time.monotonic()
            for turn in range(first, first + len(links)):
                link = links[turn % len(links)]
                if link is not avoid and self._resting.get(turn % len(links), 0.0) <= now:
                    return link
        return links[first % len(links)]

    def failed(self, link: Link) -> None:
        """Pass by this one for a second."""
        self._resting[self._links.index(link)] = time.monotonic() + _REST_SECONDS

    def answered(self, link: Link) -> None:
        """It is well."""
        if self._resting:
            self._resting.pop(self._links.index(link), None)
