"""A job's live streams in Redis, read as they grow: each read blocks in Redis until there is something."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import redis

from cyxwiz_tasks.broker_connection import BLOCK_SECONDS
from cyxwiz_tasks.outages import outliving
from cyxwiz_tasks.requests import Requests

#: Entries of one read.
_COUNT = 500


def entries(requests: Requests, key: str, silent: Callable[[], bool] | None) -> Iterator[dict[bytes, bytes]]:
    """The fields of each entry of a stream, from its first on.

    At its present end: with `silent` None it is over, else it waits for more, and asks `silent` every few seconds
    whether to give up: a Redis that lost its memory will never write the entry that was to be the last.
    One that goes away is waited for, unless the stream is over at its present end.
    """
    last, deadline = b"0", 0.0 if silent is None else None
    while True:
        found = outliving(requests, partial(read, requests.connection, key, last), deadline)
        if not found:
            if silent is None or (last == b"0" and silent()):
                return
            found = outliving(requests, partial(read, requests.connection, key, last, BLOCK_SECONDS))
            if not found and silent():
                return
        for entry_id, fields in found:
            last = entry_id
            yield fields


def read(
    connection: redis.Redis, key: str, last: bytes, block_seconds: float | None = None
) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Entries after `last`, each with its id; none if nothing comes within `block_seconds`."""
    # Redis takes a block of 0 for "for ever".
    block = None if block_seconds is None else max(1, int(block_seconds * 1000))
    found: list[Any] = connection.xread({key: last}, count=_COUNT, block=block)  # type: ignore[assignment]
    return found[0][1] if found else []
