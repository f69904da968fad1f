"""One look at the whole: who leads, and how many nodes are in each state."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from db.models import NODE_STATES, Leadership, Node
from db.rows import readable


_LEADER: Select[Any] = select(*(Leadership.epoch, Leadership.holder, Leadership.since))


def leader(tx: Connection) -> dict[str, Any]:
    """The newest leader, ready for JSON: epoch, holder, since. Whether it is still there only its lock knows."""
    row: Row[Any] = tx.execute(_LEADER).one()
    return readable(row)


def node_counts(tx: Connection) -> dict[str, int]:
    """How many nodes are in each state."""
    found = {row[0]: row[1] for row in tx.execute(select(Node.state, func.count()).group_by(Node.state))}
    return {str(state): found.get(str(state), 0) for state in NODE_STATES}
