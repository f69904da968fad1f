"""`db.jobs` in memory."""

from __future__ import annotations

from collections.abc import Sequence

from cyxwiz_tasks.states import Cause, JobState
from db.jobs import EXPIRED_MESSAGE, CancelOutcome
from db.moves import sources, waiting_sources
from db.reports import known_id
from tests.simulation.memory_db.tables import JobRow, Tx


def _move_waiting(
    tx: Tx, epoch: int, ids: Sequence[str], to: JobState, cause: Cause | None, message: str | None, actor: str
) -> list[str]:
    moved = []
    allowed = waiting_sources(to)
    for id in dict.fromkeys(ids):
        row = tx.tables.jobs.get(id)
        if row is None or row.state not in allowed:
            continue
        before = row.state
        tx.change(row)
        row.cause, row.message, row.not_before = cause and str(cause), message, None
        row.ended_at = tx.now if to in (JobState.CANCELLED, JobState.FAILED) else None
        set_state(tx, row, to)
        detail = {"message": message} if message is not None else {}
        attempt = row.attempts or None
        tx.log(epoch, actor, before, str(to), job_id=id, attempt=attempt, cause=row.cause, detail=detail)
        moved.append(id)
    return moved


def cancel_waiting(
    tx: Tx,
    epoch: int,
    ids: Sequence[str],
    cause: Cause = Cause.CANCELLED,
    message: str | None = None,
    actor: str = "client",
) -> list[str]:
    return _move_waiting(tx, epoch, ids, JobState.CANCELLED, cause, message, actor)


def fail_waiting(tx: Tx, epoch: int, ids: Sequence[str], cause: Cause, message: str) -> list[str]:
    return _move_waiting(tx, epoch, ids, JobState.FAILED, cause, message, "scheduler")


def hold(tx: Tx, epoch: int, ids: Sequence[str], cause: Cause, message: str) -> list[str]:
    return _move_waiting(tx, epoch, ids, JobState.HELD, cause, message, "scheduler")


def release(tx: Tx, epoch: int, ids: Sequence[str]) -> list[str]:
    return _move_waiting(tx, epoch, ids, JobState.PENDING, None, None, "client")


def expire(tx: Tx, epoch: int, limit: int = 1000) -> list[str]:
    rows = [
        row
        for row in (tx.tables.jobs[id] for id in tx.tables.pending)
        if row.expires_at is not None and row.expires_at <= tx.now and row.first_started_at is None
    ]
    ids = [row.id for row in sorted(rows, key=lambda row: row.expires_at or 0.0)[:limit]]
    return _move_waiting(tx, epoch, ids, JobState.CANCELLED, Cause.EXPIRED, EXPIRED_MESSAGE, "scheduler")


def request_cancel(tx: Tx, epoch: int, job_id: str, reason: str = "") -> CancelOutcome | None:
    row = tx.tables.jobs.get(job_id) if known_id(job_id) else None
    if row is None:
        return None
    before, asked = row.state, row.cancel_requested_at is not None
    outcome = (row.current_token, row.node_id)
    if not asked and before in sources(JobState.CANCELLED):
        tx.change(row)
        row.cancel_requested_at, row.cancel_reason = tx.now, reason
        if before in waiting_sources(JobState.CANCELLED):
            row.cause, row.message, row.ended_at = "cancelled", reason or None, tx.now
            set_state(tx, row, JobState.CANCELLED)
        tx.log(
            epoch,
            "client",
            before,
            row.state if row.state != before else None,
            job_id=job_id,
            node_id=row.node_id,
            attempt=row.attempts or None,
            token=row.current_token,
            cause="cancelled",
            detail={"cancel_requested": reason},
        )
    return CancelOutcome(job_id, JobState(before), JobState(row.state), *outcome)


def set_state(tx: Tx, row: JobRow, to: str) -> None:
    """Move a job's row, which was given to `tx.change` before, and keep the index of what waits."""
    if row.state == "pending":
        tx.drop(tx.tables.pending, row.id)
    row.state = str(to)
    if row.state == "pending":
        tx.put(tx.tables.pending, row.id, None)
