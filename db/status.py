"""One look at the whole: who leads, and how many nodes are in each state."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, select, text

from db.models import NODE_STATES, Node
from db.rows import readable

_LEADER = text("SELECT epoch, holder, since FROM leadership WHERE id = 1")


def leader(tx: Connection) -> dict[str, Any]:
    """The newest leader, ready for JSON: epoch, holder, since. Whether it is still there only its lock knows."""
    return readable(tx.execute(_LEADER).one())


def node_counts(tx: Connection) -> dict[str, int]:
    """How many nodes are in each state."""
    found = {row[0]: row[1] for row in tx.execute(select(Node.state, func.count()).group_by(Node.state))}
    return {str(state): found.get(str(state), 0) for state in NODE_STATES}
