"""Deadlines, retries and hedges, with both clients."""

import asyncio
import random
import time

import grpc
import pytest
from tfs_client import (
    DeadlineExceededError,
    InternalError,
    ResourceExhaustedError,
    Retry,
    ServerError,
    Timeout,
    UnavailableError,
)
from tfs_client._attempts import Budget, Rotation

SLACK = 0.6  # of a machine that is busy


def test_what_is_safe_is_tried_again(connect, server):
    client = connect(server.address)
    server.fail(grpc.StatusCode.UNAVAILABLE)
    server.fail(grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert client.classify(b"x").label == "cat"
    assert len(server.requests) == 3
    server.fail(grpc.StatusCode.UNAVAILABLE, times=9)
    with pytest.raises(UnavailableError, match="after 4 attempts") as caught:
        client.classify(b"x")
    assert caught.value.attempts == 4


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, "late"),
        (grpc.StatusCode.INTERNAL, "broken"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (9 vs. 4)"),
    ],
)
def test_what_another_attempt_cannot_mend_is_not(connect, server, code, details):
    server.fail(code, details)
    with pytest.raises(ServerError) as caught:
        connect(server.address).classify(b"x")
    assert caught.value.attempts == 1
    assert len(server.requests) == 1


def test_codes_and_attempts_are_the_users(connect, server):
    codes = frozenset({grpc.StatusCode.INTERNAL})
    server.fail(grpc.StatusCode.INTERNAL)
    client = connect(server.address, retry=Retry(attempts=2, codes=codes))
    assert client.classify(b"x").label == "cat"
    server.fail()
    with pytest.raises(UnavailableError):
        client.classify(b"x")
    server.fail(grpc.StatusCode.INTERNAL)
    with pytest.raises(InternalError):
        connect(server.address, retry=Retry(attempts=1, codes=codes)).classify(b"x")


def test_a_call_ends_when_its_time_is_over(connect, server):
    client = connect(server.address)
    server.fail(None, delay=1.0)
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError, match="longer timeout"):
        client.classify(b"x", timeout=0.2)
    assert 0.2 <= time.monotonic() - started < 0.2 + SLACK


def test_retries_end_when_the_time_is_over(connect, server, monkeypatch):
    # At 0 and 1 s: else the time may be over while one is under way, which is another error.
    monkeypatch.setattr(random, "uniform", lambda _, longest: longest)
    retry = Retry(attempts=100, first_delay=1.0, max_delay=1.0)
    client = connect(server.address, retry=retry)
    server.fail(times=1000)
    started = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        client.classify(b"x", timeout=1.5)
    assert time.monotonic() - started < 1.5 + SLACK
    assert 1 < caught.value.attempts < 100


def test_who_wakes_too_late_says_what_the_server_said(connect, server, monkeypatch):
    retry = Retry(attempts=100, first_delay=0.01, max_delay=0.01)
    client = connect(server.address, retry=retry)
    server.fail(grpc.StatusCode.UNAVAILABLE, "going away")

    def late(seconds: float) -> float:
        return seconds + 0.5 if seconds else 0  # the server sleeps for none

    monkeypatch.setattr(time, "sleep", lambda s, sleep=time.sleep: sleep(late(s)))
    monkeypatch.setattr(asyncio, "sleep", lambda s, sleep=asyncio.sleep: sleep(late(s)))
    with pytest.raises(UnavailableError, match="going away"):
        client.classify(b"x", timeout=0.4)


def test_a_total_bounds_many_requests_and_none_bounds_each(connect, server):
    client = connect(server.address, batch_size=1, in_flight=1)
    server.fail(None, delay=0.2, times=6)
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        client.classify([b"x"] * 6, timeout=Timeout(total=0.5))
    assert time.monotonic() - started < 0.5 + SLACK
    with pytest.raises(DeadlineExceededError):
        client.classify([b"x"] * 6, timeout=0.3)
    assert len(client.classify([b"x"] * 6, timeout=Timeout(request=2))) == 6


def test_a_budget_bounds_what_retries_add(connect, server):
    retry = Retry(first_delay=0.0, max_delay=0.0, budget=0.1)
    client = connect(server.address, retry=retry)
    server.fail(times=100_000)
    for _ in range(300):
        with pytest.raises(UnavailableError):
            client.classify(b"x")
    # The first hundred retries were saved up; after them, one for every ten requests.
    assert 300 + 100 <= len(server.requests) <= 300 + 100 + 0.1 * 300 + 1


def test_no_budget_means_no_retries():
    budget = Budget(0.0)
    budget.earn()
    assert not budget.spend()


@pytest.mark.parametrize(
    "settings",
    [{"attempts": 0}, {"first_delay": -1}, {"first_delay": 2.0}, {"budget": 2.0}],
)
def test_a_setting_out_of_its_range_is_named(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=name):
        Retry(**settings)


# --- hedges


def test_a_copy_of_a_slow_request_may_win(connect, server):
    client = connect(server.address, hedge=0.5)
    client.classify(b"x")
    server.fail(None, delay=3.0)
    started = time.monotonic()
    assert client.classify(b"x").label == "cat"
    assert 0.5 <= time.monotonic() - started < 2.0
    assert len(server.requests) == 3
    client.classify(b"x")
    assert len(server.requests) == 4  # the fast one has no copy


def test_a_copy_that_fails_does_not_spoil_the_first(connect, server):
    client = connect(server.address, hedge=0.1)
    server.fail(None, delay=1.5)
    server.fail(grpc.StatusCode.INTERNAL)
    assert client.classify(b"x").label == "cat"
    assert len(server.requests) == 2


def test_where_both_fail_the_error_is_told(connect, server):
    client = connect(server.address, hedge=0.1)
    server.fail(grpc.StatusCode.INTERNAL, delay=1.0, times=2)
    with pytest.raises(InternalError) as caught:
        client.classify(b"x")
    assert caught.value.attempts == 2


def test_copies_keep_to_the_budget_and_the_deadline(connect, server):
    client = connect(server.address, hedge=0.02, retry=Retry(budget=0.0))
    server.fail(None, delay=0.2)
    client.classify(b"x")
    assert len(server.requests) == 1
    slow = connect(server.address, hedge=0.05)
    server.fail(None, delay=2.0, times=2)
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        slow.classify(b"x", timeout=0.3)
    assert time.monotonic() - started < 0.3 + SLACK


def test_a_full_server_is_not_hedged_into_the_ground(connect, server):
    client = connect(server.address, hedge=1.0)
    server.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, times=99)
    with pytest.raises(ResourceExhaustedError):
        client.classify(b"x")
    assert len(server.requests) == 4


# --- turns


def test_links_take_turns_but_for_those_that_failed():
    links = ["a", "b", "c"]
    rotation = Rotation(links)
    assert [rotation.next() for _ in range(4)] == ["a", "b", "c", "a"]
    rotation.failed("b")
    assert "b" not in {rotation.next() for _ in range(9)}
    rotation.answered("b")
    assert {rotation.next() for _ in range(9)} == {"a", "b", "c"}
    for link in links:
        rotation.failed(link)
    assert rotation.next() in links
