"""`db.quotas` in memory: there are none."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.simulation.memory_db.tables import Tx


def of_projects(tx: Tx) -> dict[str, dict[str, Any]]:
    return {}


def times_preempted(tx: Tx, job_ids: list[str]) -> dict[str, int]:
    wanted = set(job_ids)
    gone = (row.job_id for row in tx.tables.attempts.values() if row.state == "preempted")
    return dict(Counter(job_id for job_id in gone if job_id in wanted))
