"""`db.known_nodes` in memory."""

from __future__ import annotations

from collections.abc import Sequence

from db.known_nodes import KnownNode
from tests.simulation.memory_db.tables import NodeRow, Tx

_CREDIT_SECONDS = 3600.0


def known(tx: Tx) -> list[KnownNode]:
    return [
        KnownNode(
            row.id,
            row.name,
            row.hostname,
            row.incarnation,
            row.state,
            row.capability,
            row.reputation,
            _uptime(tx, row),
            row.cordon,
            row.faults,
            row.quarantines,
            row.tried,
        )
        for row in _there(tx)
    ]


def uptimes(tx: Tx, node_ids: Sequence[str]) -> dict[str, float]:
    return {row.id: _uptime(tx, row) for row in _there(tx) if row.id in node_ids}


def _there(tx: Tx) -> list[NodeRow]:
    return [row for row in tx.tables.nodes.values() if row.state in ("up", "suspect")]


def _uptime(tx: Tx, row: NodeRow) -> float:
    up = row.up_seconds + _CREDIT_SECONDS
    return up / max(tx.now - row.first_seen_at + _CREDIT_SECONDS, up)
