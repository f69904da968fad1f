"""`db.nodes` in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cyxwiz_tasks.states import Cause
from db.models import NODE_STATES, NodeState
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
    return Registered(id, NodeState(state) if state else None, before, row.reputation, row.up_seconds)


def mark(tx: Tx, epoch: int, node_id: str, state: NodeState, cause: Cause | None = None) -> bool:
    gone = state in (NodeState.LOST, NodeState.LEFT)
    row = tx.tables.nodes.get(node_id)
    if row is None or row.state == state or row.state not in (NODE_STATES if gone else _THERE):
        return False
    before = row.state
    tx.change(row)
    row.state, row.left_at = str(state), tx.now if gone else None
    actor = "node" if state == NodeState.LEFT else "scheduler"
    detail = {"incarnation": row.incarnation}
    tx.log(epoch, actor, before, str(state), node_id=node_id, cause=cause and str(cause), detail=detail)
    return True


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
