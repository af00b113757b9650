"""Addresses -> gRPC channels."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from tfs_client._calls import Call
from tfs_client._errors import TFSError

_SCHEMES = ("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:", "vsock:")
DEFAULT_ADDRESS = "localhost:8500"
KEEPALIVE_SECONDS = 10.0  # the least; gRPC's servers hang up on clients that ask more often
RARELY_SECONDS = 600.0  # they all let clients ask every five minutes

# A name may stand for many servers: each gets its share, and one that dies none.
_SERVICE_CONFIG = '{"loadBalancingConfig": [{"round_robin": {}}]}'
_OPTIONS: tuple[tuple[str, Any], ...] = (
    # Answers and requests may be larger than gRPC's 4 MiB (tensorflow/serving issue 1382).
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.service_config", _SERVICE_CONFIG),
    # What comes back is found within seconds; gRPC's own are up to two minutes, and thirty seconds.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
    ("grpc.dns_min_time_between_resolutions_ms", 5000),
    # Also how long the kernel tries to reach a machine that is gone (TCP_USER_TIMEOUT), where there
    # are pings, however rare; it is a quarter of an hour else, in which every call fails.
    ("grpc.keepalive_timeout_ms", 20_000),
)


@dataclass(frozen=True)
class Target:
    """What a channel is made of."""

    address: str
    options: tuple[tuple[str, Any], ...]
    credentials: grpc.ChannelCredentials | None


class Link:
    """A channel, of grpc or of grpc.aio, opened when it is first used, and its methods so far.

    Args:
        target: what it leads to.
        open_channel: opens it; one of grpc.aio belongs to the event loop that runs then.
    """

    def __init__(self, target: Target, open_channel: Callable[[Target], Any]) -> None:
        self.address = target.address
        self.channel: Any = None
        self._target = target
        self._open = open_channel
        self._methods: dict[str, Any] = {}
        self._lock = threading.Lock()
        self.closed = False

    def method(self, call: Call[Any]) -> Any:
        """What sends such a call.

        Raises:
            ValueError: it is closed, as gRPC says it of a channel.
        """
        found = self._methods.get(call.method)
        if found is not None:
            return found
        with self._lock:
            if self.closed:
                raise ValueError("this channel is closed")
            if self.channel is None:
                self.channel = self._open(self._target)
            self._methods[call.method] = self.channel.unary_unary(
                call.method, response_deserializer=call.response.FromString
            )
            return self._methods[call.method]


def targets(
    address: str | Sequence[str],
    connections: int,
    credentials: grpc.ChannelCredentials | None,
    authority: str | None,
    keepalive: float | None,
) -> list[Target]:
    """One for each connection of each address.

    Raises:
        TFSError: an address is none.
        ValueError: a number is out of its range.
    """
    addresses = [address] if isinstance(address, str) else list(address)
    if not addresses:
        raise TFSError(f"no address is given: name a server, such as {DEFAULT_ADDRESS}")
    for one in addresses:
        _check_address(one)
    if connections < 1:
        raise ValueError(f"connections={connections}: it must be at least 1")
    options = list(_OPTIONS)
    if connections > 1:  # or gRPC shares one between channels that look alike
        options.append(("grpc.use_local_subchannel_pool", 1))
    if authority is not None:
        options.append(("grpc.default_authority", authority))
        if credentials is not None:
            options.append(("grpc.ssl_target_name_override", authority))
    if keepalive is not None and keepalive < KEEPALIVE_SECONDS:
        raise ValueError(
            f"keepalive={keepalive}: servers hang up on whoever asks more often than every "
            f"{KEEPALIVE_SECONDS:g} seconds"
        )
    options.append(("grpc.keepalive_time_ms", int((keepalive or RARELY_SECONDS) * 1000)))
    return [Target(one, tuple(options), credentials) for one in addresses * connections]


def _check_address(address: str) -> None:
    """Refuse what gRPC would take for port 443 (no port) or modulo 65536 (a large one)."""
    host, _, port = address.rpartition(":")
    scheme = "://" in address or address.startswith(_SCHEMES)
    known = re.fullmatch(r"[^\s:,]+|\[[0-9a-fA-F:.%\w]+\]", host, re.ASCII)
    number = re.fullmatch(r"\d{1,5}", port, re.ASCII)
    if not scheme and not (known and number and 0 < int(port) < 65536):
        raise TFSError(f"address {address!r} is not host:port, such as {DEFAULT_ADDRESS}")
