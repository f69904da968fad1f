"""`db.retention` in memory: an hour is too short for anything to be forgotten."""

from __future__ import annotations

from tests.simulation.memory_db.tables import Tx


def prune(tx: Tx, older_than_seconds: float, limit: int) -> int:
    assert older_than_seconds > 24 * 3600
    return 0


def prune_node_events(tx: Tx, older_than_seconds: float, limit: int) -> int:
    assert older_than_seconds > 24 * 3600
    return 0


def prune_arrays(tx: Tx, older_than_seconds: float) -> int:
    assert older_than_seconds > 24 * 3600
    return 0


def prune_node(tx: Tx, older_than_seconds: float) -> bool:
    assert older_than_seconds > 24 * 3600
    return False
