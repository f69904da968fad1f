"""Whether a node still holds a connection to Redis: the kernel closes those of a process that was killed.

A network that is cut, or a machine that lost its power, leaves them open. So a silent node without any is dead, and a
silent node with one may be cut off.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import redis

from broker.scheduler.log_lines import line

log = logging.getLogger(__name__)

#: the connections of a node's agent are named after what they are for, and its id
_NAMED = re.compile(rb"\bid=(\d+) [^\n]*\bname=cyxwiz-[a-z]+-([0-9a-f-]{36}) ")


class Connections:
    """Asks for all connections only when those that it knew of a node are gone: with 10,000 nodes they are 10 MB."""

    def __init__(self) -> None:
        self._known: dict[str, set[str]] = {}
        self._refused = False

    def gone(self, client: redis.Redis, node_ids: Iterable[str]) -> set[str]:
        """Of these nodes, those that hold no connection. None of them if Redis does not let itself be asked."""
        wanted = set(node_ids)
        self._known = {node_id: ids for node_id, ids in self._known.items() if node_id in wanted}
        try:
            there = set(self._listed(client, "ID", *(id for ids in self._known.values() for id in ids)))
            unsure = wanted - there
            if unsure:
                found = self._listed(client, "TYPE", "normal")
                self._known |= {node_id: ids for node_id, ids in found.items() if node_id in wanted}
                unsure -= set(found)
        except redis.ResponseError as error:
            if not self._refused:
                log.warning(line("connections_unknown", error=str(error)))
            self._refused = True
            return set()
        return unsure

    @staticmethod
    def _listed(client: redis.Redis, *which: str) -> dict[str, set[str]]:
        if len(which) == 1:
            return {}
        # As one word "CLIENT LIST" redis-py would make a dictionary of each line.
        text: Any = client.execute_command("CLIENT", "LIST", *which)  # type: ignore[no-untyped-call]
        found: dict[str, set[str]] = defaultdict(set)
        for id, node_id in _NAMED.findall(text if isinstance(text, bytes) else str(text).encode()):
            found[node_id.decode()].add(id.decode())
        return found
