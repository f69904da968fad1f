"""`db.nodes` in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cyxwiz_tasks.states import Cause
from db.models import NODE_STATES, Cordon, NodeState
from db.nodes import UP_GAP_SECONDS, Registered, Registration
from tests.simulation.memory_db.tables import NodeRow, Tx

_THERE = ("up", "suspect")


def register(tx: Tx, epoch: int, registration: Registration) -> Registered:
    id, incarnation = registration.node_id, registration.incarnation
    capability = registration.capability.model_dump(mode="json")
    row = tx.tables.nodes.get(id)
    state, before = (row.state, row.incarnation) if row is not None else (None, None)
    if row is None:
        row = NodeRow(id, registration.name, registration.hostname, incarnation, capability, tx.now, tx.now)
        tx.put(tx.tables.nodes, id, row)
    else:
        tx.change(row)
        row.name, row.hostname, row.incarnation = registration.name, registration.hostname, incarnation
        row.capability, row.last_seen_at, row.state, row.left_at = capability, tx.now, "up", None
    if state != "up" or before != incarnation:
        tx.log(epoch, "node", state, "up", node_id=id, detail={"incarnation": incarnation})
    return Registered(
        id,
        NodeState(state) if state else None,
        before,
        row.reputation,
        row.up_seconds,
        Cordon(row.cordon) if row.cordon else None,
        row.faults,
        row.quarantines,
        row.tried,
    )


def mark(
    tx: Tx,
    epoch: int,
    node_ids: Collection[str],
    state: NodeState,
    cause: Cause | None = None,
    message: str | None = None,
) -> set[str]:
    gone = state in (NodeState.LOST, NodeState.LEFT)
    moved = set()
    for node_id in dict.fromkeys(node_ids):
        row = tx.tables.nodes.get(node_id)
        if row is None or row.state == state or row.state not in (NODE_STATES if gone else _THERE):
            continue
        before = row.state
        tx.change(row)
        row.state, row.left_at = str(state), tx.now if gone else None
        actor = "node" if state == NodeState.LEFT else "scheduler"
        detail = {"incarnation": row.incarnation} | ({} if message is None else {"message": message})
        tx.log(epoch, actor, before, str(state), node_id=node_id, cause=cause and str(cause), detail=detail)
        moved.add(node_id)
    return moved


def seen(tx: Tx, telemetry: Mapping[str, dict[str, Any] | None]) -> int:
    rows = [tx.tables.nodes[id] for id in telemetry if id in tx.tables.nodes and tx.tables.nodes[id].state in _THERE]
    for row in rows:
        tx.change(row)
        row.telemetry = telemetry[row.id] if telemetry[row.id] is not None else row.telemetry
        row.up_seconds += min(tx.now - row.last_seen_at, UP_GAP_SECONDS)
        row.last_seen_at = tx.now
    return len(rows)


def rate(tx: Tx, reputations: Mapping[str, float]) -> int:
    known = [id for id in reputations if id in tx.tables.nodes]
    for id in known:
        tx.change(tx.tables.nodes[id]).reputation = reputations[id]
    return len(known)


def note_tried(tx: Tx, node_id: str) -> bool:
    if node_id not in tx.tables.nodes:
        return False
    tx.change(tx.tables.nodes[node_id]).tried = True
    return True


def cordon(tx: Tx, epoch: int, node_id: str, cordon: Cordon, seconds: float | None = None, reason: str = "") -> bool:
    row = tx.tables.nodes.get(node_id)
    if row is None or (row.cordon is not None and cordon != Cordon.DRAINING):
        return False
    tx.change(row)
    row.cordon, row.cordon_reason = str(cordon), reason or None
    row.cordon_until = tx.now + seconds if seconds is not None else None
    row.quarantines += cordon == Cordon.QUARANTINED
    detail = {"cordon": str(cordon), "seconds": seconds, "reason": reason or None}
    detail = {name: value for name, value in detail.items() if value is not None}
    actor = "client" if cordon == Cordon.DRAINING else "scheduler"
    tx.log(epoch, actor, None, None, node_id=node_id, detail=detail)
    return True


def uncordon(tx: Tx, epoch: int, node_id: str, *, forgive: bool = True) -> Cordon | None:
    row = tx.tables.nodes.get(node_id)
    if row is None or row.cordon is None:
        return None
    before = row.cordon
    tx.change(row)
    row.cordon = row.cordon_until = row.cordon_reason = None
    row.faults, row.quarantines = 0, 0 if forgive else row.quarantines
    tx.log(epoch, "client" if forgive else "scheduler", None, None, node_id=node_id, detail={"uncordoned": before})
    return Cordon(before)


def quarantines_over(tx: Tx) -> list[str]:
    rows = tx.tables.nodes.values()
    return [r.id for r in rows if r.cordon == "quarantined" and r.cordon_until is not None and r.cordon_until <= tx.now]


def gone(tx: Tx, node_ids: Sequence[str]) -> list[str]:
    known = (tx.tables.nodes.get(id) for id in node_ids)
    return [row.id for row in known if row is not None and row.state not in _THERE]


def drains_due(tx: Tx) -> list[str]:
    rows = tx.tables.nodes.values()
    return [r.id for r in rows if r.cordon == "draining" and r.cordon_until is not None and r.cordon_until <= tx.now]


def find(tx: Tx, name: str | None = None) -> list[dict[str, Any]]:
    """Of a node's page what draining looks at."""
    return [{"id": row.id, "state": row.state} for row in tx.tables.nodes.values() if name in (row.id, row.name)]


def count_faults(tx: Tx, counts: Mapping[str, tuple[int, int]]) -> int:
    known = [id for id in counts if id in tx.tables.nodes]
    for id in known:
        row = tx.change(tx.tables.nodes[id])
        row.faults, row.quarantines = counts[id]
    return len(known)
