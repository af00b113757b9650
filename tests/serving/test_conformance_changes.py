"""Recorded cases that change models and configuration."""

import pytest

from tests.serving.conformance import exchange, servers

FLAGS, CASES = servers.load()
CHANGES = [c for c in CASES if servers.of_its_own(c) and c["transport"] != "startup"]


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in CHANGES])
def test_changes_as_recorded(case):
    spec = FLAGS[case["server"]]
    with servers.launched(spec) as server:
        servers.wait_until_ready(server, spec)
        assert exchange.run(server, case) == []
