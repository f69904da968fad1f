"""`db.metrics` in memory."""

from __future__ import annotations

from collections.abc import Sequence

from db.metrics import NewMetric
from tests.simulation.memory_db.tables import MetricRow, Tx


def append(tx: Tx, rows: Sequence[NewMetric]) -> int:
    tables = tx.tables
    added = []
    for new in rows:
        attempt = tables.attempts.get(new.token)
        if attempt is None or (attempt.job_id, attempt.node_id) != (new.job_id, new.node_id):
            continue
        row = MetricRow(new.job_id, attempt.number, new.at, new.values)
        if row not in tables.metrics:
            added.append(row)
    for row in added:
        tx.append(tables.metrics, row)
    return len(added)
