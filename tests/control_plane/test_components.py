"""Components whose work shows in where pods go and what they may take."""

import pytest

from tests.control_plane.conftest import serving

pytestmark = pytest.mark.control_plane


def test_gpu_servers_go_where_gpus_are(kubectl, rendered):
    with serving(kubectl, rendered(components=("gpu",))) as within:
        nodes = {pod["spec"]["nodeName"] for pod in within.items("pods")}
        assert all(name.startswith("gpu-") for name in nodes)


def test_the_quota_counts_them(kubectl, rendered):
    with serving(kubectl, rendered(components=("quota",))) as within:
        used = within.get("resourcequota/googlenet")["status"]["used"]
        assert (used["pods"], used["limits.cpu"], used["limits.memory"]) == ("3", "12", "12Gi")
