"""`db.schedules` in memory: a simulated workload has none."""

from __future__ import annotations

from tests.simulation.memory_db.tables import Tx


def next_in_seconds(tx: Tx) -> float | None:
    return None
