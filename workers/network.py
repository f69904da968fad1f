"""Where this node stands in the network: its address as others see it, and the link behind it."""

from __future__ import annotations

import random
import socket
from ipaddress import ip_address
from urllib.parse import urlsplit

import psutil

_LOOPBACK = "127.0.0.1"
#: below the ports that Linux gives to outgoing connections, so that none of them takes one meanwhile
_FIRST_PORT, _LAST_PORT = 20_000, 32_000
_PORTS_TRIED = 100


def address_towards(url: str) -> str:
    """The address of this machine from which it reaches a server, such as the broker; nothing is sent."""
    parts = urlsplit(url)
    return _LOOPBACK if parts.scheme == "unix" or not parts.hostname else source_address(parts.hostname)


def source_address(host: str) -> str:
    """The address of this machine from which it reaches another; loopback where it reaches none."""
    try:
        family, _, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError:
        return _LOOPBACK


def interface_of(address: str) -> str | None:
    """The network interface that has this address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in addresses):
            return str(name)
    return None


def link_bytes_per_second(address: str) -> float | None:
    """The speed of the link with this address, as its driver says; None for loopback, and where it says nothing."""
    try:
        if ip_address(address).is_loopback:
            return None
    except ValueError:
        return None
    facts = psutil.net_if_stats().get(interface_of(address) or "")
    return facts.speed * 1_000_000 / 8 if facts is not None and facts.speed > 0 else None


def free_port() -> int:
    """A TCP port of this machine at which nobody listens. Raises OSError where there is none."""
    for _ in range(_PORTS_TRIED):
        port = random.randrange(_FIRST_PORT, _LAST_PORT)  # noqa: S311 - nothing secret
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port between {_FIRST_PORT} and {_LAST_PORT} was found in {_PORTS_TRIED} tries")
