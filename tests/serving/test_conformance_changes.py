"""Recorded cases that change models and configuration."""

from typing import Any

import pytest

from tests.serving.conformance import exchange, servers

FLAGS, CASES = servers.load()
CHANGES = [c for c in CASES if servers.of_its_own(c) and c["transport"] != "startup"]


def _spec(case: dict[str, Any]) -> dict[str, Any]:
    """The case's server, which looks at its file again only for cases that write it.

    It takes the file as it is, a second after the start, and so undoes what a call of the case has
    configured before; a slow machine needs that long for the rest of the case.
    """
    spec = FLAGS[case["server"]]
    if any(step.get("do") == "write" for step in case["steps"]):
        return spec
    flags = [flag for flag in spec["flags"] if "config_file_poll_wait" not in flag]
    return spec | {"flags": flags}


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in CHANGES])
def test_changes_as_recorded(case):
    spec = _spec(case)
    with servers.launched(spec) as server:
        servers.wait_until_ready(server, spec)
        assert exchange.run(server, case) == []
