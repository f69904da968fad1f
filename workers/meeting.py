"""Where the processes of a gang meet: the node of rank 0 chooses a port, and tells the others through Redis."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import redis

from cyxwiz_tasks.protocol.headers import Membership
from cyxwiz_tasks.protocol.names import meeting_key
from cyxwiz_tasks.runtime.pipe import Frame
from workers.network import free_port, interface_of, source_address

log = logging.getLogger(__name__)

#: How long members wait for the node of rank 0, which may have a checkpoint to fetch first. Less than the minute after
#: which the scheduler takes back what has not started, and puts it down to the node.
PATIENCE_SECONDS = 50.0
_PAUSE_SECONDS = 0.05
_KEPT_SECONDS = 3600


class NotMet(Exception):
    """The members of a gang could not agree on where to meet."""


def arrange(client: redis.Redis, member: Membership, given_up: Callable[[], bool]) -> Frame | None:
    """What a member's process is told of its gang; None once `given_up` says so. Raises NotMet."""
    port = _open(client, member) if member.rank == 0 else _learn(client, member, given_up)
    if port is None:
        return None
    address = member.address or "localhost"
    return {
        "rank": member.rank,
        "nodes": list(member.nodes),
        "address": address,
        "port": port,
        "interface": interface_of(source_address(address)),
    }


def _open(client: redis.Redis, member: Membership) -> int:
    try:
        port = free_port()
        client.set(meeting_key(member.token), port, ex=_KEPT_SECONDS)
    except (OSError, redis.RedisError) as error:
        raise NotMet(f"rank 0 could not say where to meet: {error}") from error
    return port


def _learn(client: redis.Redis, member: Membership, given_up: Callable[[], bool]) -> int | None:
    gives_up_at, failure = time.monotonic() + PATIENCE_SECONDS, "it said nothing"
    while not given_up():
        try:
            found = client.get(meeting_key(member.token))
            if isinstance(found, bytes):
                return int(found)
        except redis.RedisError as error:
            failure = str(error)
        if time.monotonic() >= gives_up_at:
            raise NotMet(f"rank 0, on node {member.nodes[0]}, named no port within {PATIENCE_SECONDS:g} s: {failure}")
        time.sleep(_PAUSE_SECONDS)
    return None
