"""Move jobs that wait: cancel, fail, hold, release, expire. Those with an attempt move with it (attempts.py).

Every change is one statement that moves the job and writes its event, so `jobs` is the fold of `events` at any commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from cyxwiz_tasks.states import Cause, JobState
from db.moves import sources, waiting_sources
from db.reports import known_id
from db.rows import clean

_MOVE_WAITING = text(
    """
    WITH locked AS (
        SELECT id, state FROM jobs WHERE id = ANY(CAST(:ids AS uuid[])) AND state = ANY(:sources) FOR UPDATE
    ), moved AS (
        UPDATE jobs SET state = :state, cause = :cause, message = :message, not_before = NULL,
            ended_at = CASE WHEN :ends THEN statement_timestamp() END
        FROM locked WHERE jobs.id = locked.id
        RETURNING jobs.id, locked.state AS from_state, attempts
    ), logged AS (
        INSERT INTO events (job_id, attempt, epoch, from_state, to_state, cause, actor, detail)
        SELECT id, nullif(attempts, 0), :epoch, from_state, :state, :cause, :actor,
            jsonb_strip_nulls(jsonb_build_object('message', :message ::text))
        FROM moved
    )
    SELECT id::text FROM moved"""
)


def _move_waiting(
    tx: Connection, epoch: int, ids: Sequence[str], to: JobState, cause: Cause | None, message: str | None, actor: str
) -> list[str]:
    values = {
        "ids": list(ids),
        "sources": waiting_sources(to),
        "state": str(to),
        "cause": cause and str(cause),
        "message": clean(message),
        "ends": to in (JobState.CANCELLED, JobState.FAILED),
        "actor": actor,
        "epoch": epoch,
    }
    return [row[0] for row in tx.execute(_MOVE_WAITING, values)]


def cancel_waiting(
    tx: Connection,
    epoch: int,
    ids: Sequence[str],
    cause: Cause = Cause.CANCELLED,
    message: str | None = None,
    actor: str = "client",
) -> list[str]:
    """End jobs that wait or are held; the ids of those that did."""
    return _move_waiting(tx, epoch, ids, JobState.CANCELLED, cause, message, actor)


def fail_waiting(tx: Connection, epoch: int, ids: Sequence[str], cause: Cause, message: str) -> list[str]:
    """Fail jobs that will never run; the ids of those that waited or were held."""
    return _move_waiting(tx, epoch, ids, JobState.FAILED, cause, message, "scheduler")


def hold(tx: Connection, epoch: int, ids: Sequence[str], cause: Cause, message: str) -> list[str]:
    """Set pending jobs aside until a person releases them; the ids of those that were pending."""
    return _move_waiting(tx, epoch, ids, JobState.HELD, cause, message, "scheduler")


def release(tx: Connection, epoch: int, ids: Sequence[str]) -> list[str]:
    """Put held jobs back into the queue; the ids of those that were held."""
    return _move_waiting(tx, epoch, ids, JobState.PENDING, None, None, "client")


EXPIRED_MESSAGE = "it did not start in time (`expires`, `start_by`): submit it again, with more time"

_EXPIRED = text(
    """
    SELECT id FROM jobs WHERE state = 'pending' AND expires_at <= statement_timestamp() AND first_started_at IS NULL
    ORDER BY expires_at LIMIT :limit"""
)


def expire(tx: Connection, epoch: int, limit: int = 1000) -> list[str]:
    """Cancel up to `limit` pending jobs that did not start by their `expires` or `start_by`; their ids."""
    ids = [str(row[0]) for row in tx.execute(_EXPIRED, {"limit": limit})]
    if not ids:
        return []
    return _move_waiting(tx, epoch, ids, JobState.CANCELLED, Cause.EXPIRED, EXPIRED_MESSAGE, "scheduler")


@dataclass(frozen=True)
class CancelOutcome:
    """`before` and `state` differ if the job waited and is cancelled by now; a live one's attempt has to be stopped."""

    job_id: str
    before: JobState
    state: JobState
    token: int | None
    node_id: str | None


_REQUEST_CANCEL = text(
    """
    WITH locked AS (
        SELECT id, state, attempts, current_token, node_id, cancel_requested_at IS NOT NULL AS asked
        FROM jobs WHERE id = CAST(:id AS uuid) FOR UPDATE
    ), changed AS (
        UPDATE jobs SET cancel_requested_at = statement_timestamp(), cancel_reason = :reason,
            state = CASE WHEN locked.state = ANY(:waiting) THEN 'cancelled' ELSE locked.state END,
            cause = CASE WHEN locked.state = ANY(:waiting) THEN 'cancelled' ELSE cause END,
            message = CASE WHEN locked.state = ANY(:waiting) THEN nullif(:reason, '') ELSE message END,
            ended_at = CASE WHEN locked.state = ANY(:waiting) THEN statement_timestamp() END
        FROM locked WHERE jobs.id = locked.id AND NOT locked.asked AND locked.state = ANY(:sources)
        RETURNING jobs.state
    ), logged AS (
        INSERT INTO events (job_id, node_id, attempt, token, epoch, from_state, to_state, cause, actor, detail)
        SELECT id, node_id, nullif(attempts, 0), current_token, :epoch, locked.state,
            nullif(changed.state, locked.state), 'cancelled', 'client',
            jsonb_build_object('cancel_requested', :reason ::text)
        FROM locked, changed
    )
    SELECT id::text, locked.state, coalesce(changed.state, locked.state), current_token, node_id::text
    FROM locked LEFT JOIN changed ON true"""
)


def request_cancel(tx: Connection, epoch: int, job_id: str, reason: str = "") -> CancelOutcome | None:
    """Cancel a job that waits; remember the wish for one with an attempt under way. None: there is no such job."""
    if known_id(job_id) is None:
        return None
    values = {
        "id": job_id,
        "reason": clean(reason),
        "waiting": waiting_sources(JobState.CANCELLED),
        "sources": sources(JobState.CANCELLED),
        "epoch": epoch,
    }
    row = tx.execute(_REQUEST_CANCEL, values).one_or_none()
    return CancelOutcome(row[0], JobState(row[1]), JobState(row[2]), row[3], row[4]) if row is not None else None
