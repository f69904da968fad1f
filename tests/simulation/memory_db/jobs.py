"""`db.jobs` in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from cyxwiz_tasks.states import TERMINAL_JOB_STATES, Cause, JobState
from db.jobs import EXPIRED_MESSAGE, Accepted, CancelOutcome, Held, NewJob, StoredMessage, Waiting
from db.moves import sources, waiting_sources
from db.reports import known_id
from tests.simulation.memory_db.tables import JobRow, Tx


def accept(tx: Tx, epoch: int, jobs: Sequence[NewJob]) -> list[Accepted]:
    tables = tx.tables
    created = {}
    for position, job in enumerate(jobs):
        key = (job.owner, job.idempotency_key) if job.idempotency_key is not None else None
        if job.id in tables.jobs or (key is not None and key in tables.keys):
            continue
        created[position] = _insert(tx, epoch, job)
        if key is not None:
            tx.put(tables.keys, key, job.id)
    answers = []
    for position, job in enumerate(jobs):
        if position in created:
            row = created[position]
            answers.append(Accepted(job.id, job.id, JobState.PENDING, True, False, True, row.seq))
            continue
        by_id = tables.jobs.get(job.id)
        known = by_id or tables.jobs[tables.keys[job.owner, str(job.idempotency_key)]]
        same = known.new.digest == job.digest
        conflict = by_id is not None and not same
        answers.append(Accepted(job.id, known.id, JobState(known.state), False, conflict, same, known.seq))
    return answers


def _insert(tx: Tx, epoch: int, job: NewJob) -> JobRow:
    expiries = [_seconds(job.expires_at), _after(tx, job.start_by_seconds)]
    row = JobRow(
        job.id,
        tx.tables.next_seq(job.id),
        job,
        job.stored_envelope,
        accepted_at=tx.now,
        not_before=_seconds(job.not_before),
        expires_at=min((moment for moment in expiries if moment is not None), default=None),
        deadline_at=_after(tx, job.deadline_seconds),
    )
    tx.put(tx.tables.jobs, job.id, row)
    tx.put(tx.tables.pending, job.id, None)
    tx.log(epoch, "client", None, "pending", job_id=job.id)
    return row


def waiting(tx: Tx, ids: Sequence[str] | None = None) -> Iterator[Waiting]:
    rows = [tx.tables.jobs[id] for id in tx.tables.pending if ids is None or id in ids]
    for row in sorted(rows, key=lambda row: (-row.new.priority, row.seq)):
        yield Waiting(
            row.id,
            row.seq,
            row.new.owner,
            row.new.project,
            row.new.priority,
            row.new.shape,
            row.learned,
            row.not_before - tx.now if row.not_before is not None else None,
            row.expires_at - tx.now if row.expires_at is not None and row.first_started_at is None else None,
            row.deadline_at - tx.now if row.deadline_at is not None else None,
            row.new.time_limit_seconds,
        )


def held(tx: Tx, ids: Sequence[str] | None = None) -> list[Held]:
    rows = (row for id, row in tx.tables.jobs.items() if row.state == "held" and (ids is None or id in ids))
    found = [Held(row.id, row.message, row.deadline_at - tx.now) for row in rows if row.deadline_at is not None]
    return sorted(found)


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
    row.not_before = _after(tx, after_seconds) if after_seconds is not None else _seconds(not_before)
    return True


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


def _seconds(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment is not None else None


def _after(tx: Tx, seconds: float | None) -> float | None:
    return tx.now + seconds if seconds is not None else None
