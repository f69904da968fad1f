"""Under which address the members of a gang meet: that of the node of rank 0, as the others can reach it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from cyxwiz_tasks.capability import Capability


def meeting_point(lead: Capability, members: Iterable[Capability]) -> str:
    """The address of rank 0's node; its host's name where that address means another machine to some member."""
    same_host = all(member.hostname == lead.hostname for member in members)
    if lead.address is None or (_is_loopback(lead.address) and not same_host):
        return lead.hostname
    return lead.address


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
