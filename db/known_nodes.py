"""The nodes as a new leader must know them: those that are not lost and have not left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

#: counted as time up before a node was first seen, so that its first minutes say little
_CREDIT_SECONDS = 3600.0


@dataclass(frozen=True)
class KnownNode:
    id: str
    name: str
    hostname: str
    incarnation: str
    state: str
    capability: dict[str, Any]
    #: 0 to 1
    reputation: float
    #: share of the time since it was first seen in which it was up, 0 to 1
    uptime: float
    #: why it gets no new work, "draining" or "quarantined"; its faults and quarantines: see `db.models.Node`
    cordon: str | None
    faults: int
    quarantines: int
    #: whether a job has ever completed there
    tried: bool


_KNOWN = text(
    """
    SELECT id::text, name, hostname, incarnation, state, capability, reputation::float8, (up_seconds + :credit)
        / greatest(extract(epoch FROM statement_timestamp() - first_seen_at)::float8 + :credit, up_seconds + :credit),
        cordon, faults, quarantines, tried
    FROM nodes WHERE state IN ('up', 'suspect')"""
)


def known(tx: Connection) -> list[KnownNode]:
    """Every node that is up or suspect."""
    return [KnownNode(*row) for row in tx.execute(_KNOWN, {"credit": _CREDIT_SECONDS})]


_UPTIMES = text(
    """
    SELECT id::text, (up_seconds + :credit)
        / greatest(extract(epoch FROM statement_timestamp() - first_seen_at)::float8 + :credit, up_seconds + :credit)
    FROM nodes WHERE id = ANY(CAST(:ids AS uuid[])) AND state IN ('up', 'suspect')"""
)


def uptimes(tx: Connection, node_ids: Sequence[str]) -> dict[str, float]:
    """By node, of these, the share of the time since it was first seen in which it was up, 0 to 1."""
    return {row[0]: row[1] for row in tx.execute(_UPTIMES, {"credit": _CREDIT_SECONDS, "ids": list(node_ids)})}
