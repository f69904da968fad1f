"""`db.job_messages` in memory."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cyxwiz_tasks.states import TERMINAL_JOB_STATES
from db.job_messages import StoredMessage
from tests.simulation.memory_db.tables import Tx
from tests.simulation.memory_db.times import after, seconds_of


def messages(tx: Tx, ids: Sequence[str]) -> dict[str, StoredMessage]:
    rows = (tx.tables.jobs[id] for id in ids if id in tx.tables.jobs)
    return {row.id: StoredMessage.read(row.envelope) for row in rows}


def replace_message(
    tx: Tx, job_id: str, message: StoredMessage, not_before: datetime | None, after_seconds: float | None = None
) -> bool:
    row = tx.tables.jobs.get(job_id)
    if row is None or row.state in TERMINAL_JOB_STATES:
        return False
    tx.change(row)
    row.envelope = message.envelope
    row.not_before = after(tx, after_seconds) if after_seconds is not None else seconds_of(not_before)
    return True
