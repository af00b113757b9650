"""Recorded starts of the server: whether it ends, serves or waits."""

import time

import pytest

from tests.serving.conformance import compare, servers

FLAGS, CASES = servers.load()
STARTS = [case for case in CASES if case["transport"] == "startup"]
EXIT_SECONDS = 60.0


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in STARTS])
def test_starts_as_recorded(case):
    want = case["expect"]
    waits = not want["exits"] and not want["serving"]
    with servers.launched(FLAGS[case["server"]]) as server:
        deadline = time.monotonic() + (case["watch_s"] if waits else EXIT_SECONDS)
        while time.monotonic() < deadline and server.process.poll() is None:
            if servers.listening(server.port):
                break
            time.sleep(0.05)
        code, serving = server.process.poll(), servers.listening(server.port)
        assert (code is not None, serving) == (want["exits"], want["serving"]), server.log()
        if want["exits"]:
            assert bool(code) == bool(want["exit_code"])
            words = case.get("compare", {}).get("words", [])
            assert list(compare.lacking(words, server.log())) == []
