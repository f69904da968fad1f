"""`db.job_pages` in memory: of a job's page what the scheduler itself looks at."""

from __future__ import annotations

from typing import Any

from tests.simulation.memory_db.tables import Tx


def get(tx: Tx, job_id: str) -> dict[str, Any] | None:
    row = tx.tables.jobs.get(job_id)
    return {"id": row.id, "state": row.state} if row is not None else None
