"""Who is at work, who waits, and that nobody is forgotten."""

import contextlib
import random
import threading
import time
from concurrent import futures

import pytest

from serving import workers as module
from serving.workers import AT_WORK, Computation, Workers, aside, received

SECONDS = 20.0


class Count:
    """How many are inside at a time."""

    def __init__(self):
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def __enter__(self):
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)

    def __exit__(self, *_):
        with self._lock:
            self.inside -= 1


def until(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_answers_and_errors_come_back():
    workers = Workers(4)
    assert workers.submit(divmod, 7, 2).result(SECONDS) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        workers.submit(divmod, 1, 0).result(SECONDS)
    assert list(workers.map(str, range(50), timeout=SECONDS)) == list(map(str, range(50)))


@pytest.mark.parametrize("elsewhere", [contextlib.nullcontext, aside], ids=["", "aside"])
def test_few_are_at_work_at_a_time_whatever_other_threads_do(elsewhere, monkeypatch):
    monkeypatch.setattr(module, "LONG_SECONDS", SECONDS)
    workers, count = Workers(16), Count()

    def work():
        received()
        with count:
            time.sleep(0.01)

    with elsewhere():
        futures.wait([workers.submit(work) for _ in range(20)], SECONDS)
    assert count.most == AT_WORK


def test_those_who_wait_make_room_up_to_the_limit():
    workers, count, free = Workers(8), Count(), threading.Event()

    def work():
        with aside(), count:
            assert free.wait(SECONDS)

    asked = [workers.submit(work) for _ in range(12)]
    until(lambda: count.inside == 8)
    time.sleep(0.1)
    assert count.inside == 8
    free.set()
    for each in asked:
        each.result(SECONDS)


def test_a_few_that_wait_do_not_hold_up_the_others():
    workers, free = Workers(8), threading.Event()

    def wait():
        with aside():
            assert free.wait(SECONDS)

    waiting = [workers.submit(wait) for _ in range(AT_WORK + 1)]
    assert workers.submit(int, "5").result(SECONDS) == 5
    assert not any(each.done() for each in waiting)
    free.set()
    futures.wait(waiting, SECONDS)


def test_calls_that_are_slow_to_arrive_do_not_hold_up_the_others():
    workers, here, count = Workers(16), threading.Event(), Count()

    def arrive():
        assert here.wait(SECONDS)
        received()
        with count:
            time.sleep(0.01)

    arriving = [workers.submit(arrive) for _ in range(2 * AT_WORK)]
    assert workers.submit(int, "5").result(SECONDS) == 5
    assert not any(each.done() for each in arriving)
    here.set()
    for each in arriving:
        each.result(SECONDS)
    for _ in range(20):
        workers.submit(arrive)
    until(lambda: not workers._tasks and workers._at_work == 0)


def compute(computation, work):
    with computation.once():
        return work()


def test_what_was_quick_last_time_stays_at_work_until_it_is_long_and_others_wait(monkeypatch):
    monkeypatch.setattr(module, "LONG_SECONDS", 1.0)
    monkeypatch.setattr(module, "QUICK_SECONDS", SECONDS)
    workers, free, computation = Workers(8), threading.Event(), Computation()
    workers.submit(compute, computation, int).result(SECONDS)
    computing = [
        workers.submit(compute, computation, lambda: free.wait(SECONDS)) for _ in range(AT_WORK)
    ]
    others = [workers.submit(int, "5") for _ in range(3)]
    with pytest.raises(futures.TimeoutError):
        others[0].result(0.5)
    assert [each.result(SECONDS) for each in others] == [5, 5, 5]
    free.set()
    assert all(each.result(SECONDS) for each in computing)


def test_nobody_waits_for_more_than_a_few_that_are_long(monkeypatch):
    monkeypatch.setattr(module, "QUICK_SECONDS", SECONDS)
    workers, free, computation = Workers(32), threading.Event(), Computation()
    workers.submit(compute, computation, int).result(SECONDS)
    begun = Count()

    def work():
        received()
        with begun:
            assert free.wait(SECONDS)

    computing = [workers.submit(compute, computation, work) for _ in range(20)]
    until(lambda: begun.inside == 20)  # though no further call comes that would see to it
    free.set()
    for each in computing:
        each.result(SECONDS)


def test_a_thread_that_cannot_be_started_is_tried_again(monkeypatch):
    workers, start, failures = Workers(4), threading.Thread.start, iter([True] * 3)

    def failing(thread):
        if next(failures, False):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)
    assert workers.submit(int, "5").result(SECONDS) == 5
    assert next(failures, None) is None


def test_what_was_not_quick_makes_room_at_once(monkeypatch):
    monkeypatch.setattr(module, "LONG_SECONDS", 2 * SECONDS)
    workers, free, computation = Workers(8), threading.Event(), Computation()
    for seconds in (0, 2 * module.QUICK_SECONDS):
        workers.submit(compute, computation, lambda for_=seconds: time.sleep(for_)).result(SECONDS)
    computing = [
        workers.submit(compute, computation, lambda: free.wait(SECONDS)) for _ in range(AT_WORK)
    ]
    assert workers.submit(int, "5").result(SECONDS) == 5
    free.set()
    assert all(each.result(SECONDS) for each in computing)


def test_nothing_is_lost_whatever_happens_inside():
    workers, computation = Workers(6), Computation()

    def work(seed):
        chance = random.Random(seed)
        compute(computation, lambda: time.sleep(0.002 if chance.random() < 0.1 else 0))
        for _ in range(chance.randrange(3)):
            with aside():
                time.sleep(chance.random() / 1000)
        if chance.random() < 0.2:
            with aside():
                raise ValueError(seed)
        return seed

    with futures.ThreadPoolExecutor(4) as callers:
        asked = [x.result() for x in [callers.submit(workers.submit, work, n) for n in range(2000)]]
    done, late = futures.wait(asked, SECONDS)
    assert not late
    failed = [each for each in done if each.exception()]
    assert 300 < len(failed) < 500
    assert workers.submit(int, "5").result(SECONDS) == 5
