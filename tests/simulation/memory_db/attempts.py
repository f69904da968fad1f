"""`db.attempts` in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cyxwiz_tasks.states import TERMINAL_JOB_STATES, AttemptState, Cause, JobState
from db.attempts import UNPLACED_STATES, Assigned, Ending, Live, NewAttempt, Past, Settled, Start
from db.moves import LIVE, sources
from tests.simulation.memory_db.jobs import set_state
from tests.simulation.memory_db.tables import AttemptRow, EventRow, JobRow, Tx


def assign(tx: Tx, epoch: int, attempts: Sequence[NewAttempt], lease_seconds: float) -> dict[str, Assigned]:
    tables = tx.tables
    placed = {}
    for new in attempts:
        job = tables.jobs.get(new.job_id)
        if job is None or job.state not in sources(JobState.ASSIGNED):
            continue
        tx.change(job)
        token = tables.next_token(job.id)
        job.node_id, job.current_token, job.attempts = new.node_id, token, job.attempts + 1
        job.assigned_at, job.cause, job.message, job.not_before = tx.now, None, None, None
        set_state(tx, job, "assigned")
        row = AttemptRow(token, new, job.attempts, epoch, tx.now, tx.now + lease_seconds)
        tx.put(tables.attempts, token, row)
        tx.put(tables.live, token, None)
        _log(tx, epoch, row, "pending", "assigned", "scheduler")
        placed[job.id] = Assigned(job.id, token, job.attempts, new.node_id)
    return placed


def start(tx: Tx, epoch: int, reports: Sequence[Start]) -> set[int]:
    moved = set()
    for report in reports:
        job = tx.tables.jobs.get(report.job_id)
        if job is None or (job.current_token, job.node_id) != (report.token, report.node_id):
            continue
        if job.state not in sources(JobState.RUNNING):
            continue
        row = tx.change(tx.tables.attempts[report.token])
        tx.change(job)
        job.started_at = row.started_at = tx.now
        job.first_started_at = job.first_started_at or tx.now
        set_state(tx, job, "running")
        row.state, row.pid, row.device = "running", report.pid, report.device
        detail = {"pid": report.pid, "device": report.device}
        _log(tx, epoch, row, "assigned", "running", "node", detail=detail)
        moved.add(report.token)
    return moved


class _Found(NamedTuple):
    job_id: str | None
    moved: bool
    job_state: str | None
    known: bool
    newest: bool = False


def end(tx: Tx, epoch: int, endings: Sequence[Ending]) -> list[Settled]:
    first: dict[int, Ending] = {}
    for ending in endings:
        first.setdefault(ending.token, ending)
    # What does not move is answered with what the job was before, as one statement sees it.
    tables = tx.tables
    before = {token: tables.jobs[tables.attempts[token].job_id].state for token in first if token in tables.attempts}
    found = {token: _settle(tx, epoch, vars(ending), "node") for token, ending in first.items()}
    found = {token: row if row.moved else row._replace(job_state=before.get(token)) for token, row in found.items()}
    found = {token: row._replace(newest=_is_newest(tx, token)) for token, row in found.items()}
    answers = []
    for ending in endings:
        row, winner = found[ending.token], first[ending.token]
        same = (ending.job_id, ending.node_id, ending.state) == (winner.job_id, winner.node_id, winner.state)
        committed = (row.moved or row.known) and same
        repeated = committed and not (row.moved and ending is winner)
        state = JobState(row.job_state) if row.job_state is not None else None
        answers.append(Settled(ending.job_id, ending.token, committed, repeated, state, row.newest))
    return answers


def _is_newest(tx: Tx, token: int) -> bool:
    attempt = tx.tables.attempts.get(token)
    return attempt is not None and tx.tables.jobs[attempt.job_id].current_token == token


def unplace(
    tx: Tx,
    epoch: int,
    tokens: Sequence[int],
    cause: Cause,
    message: str | None = None,
    job_state: JobState = JobState.PENDING,
    retry_after_seconds: float | None = None,
    job_message: str | None = None,
) -> list[Settled]:
    state = UNPLACED_STATES.get(cause, AttemptState.LOST)
    given = {"state": state, "job_state": job_state, "cause": cause, "message": message, "job_message": job_message}
    settled = []
    for token in dict.fromkeys(tokens):
        row = _settle(tx, epoch, {"token": token, "retry_after_seconds": retry_after_seconds, **given}, "scheduler")
        if row.moved:
            assert row.job_id is not None
            settled.append(Settled(row.job_id, token, True, job_state=JobState(row.job_state)))
    return settled


def _settle(tx: Tx, epoch: int, given: Mapping[str, Any], actor: str) -> _Found:
    attempt = tx.tables.attempts.get(given["token"])
    if attempt is None:
        return _Found(None, False, None, False)
    job = tx.tables.jobs[attempt.job_id]
    job_id, node_id = given.get("job_id"), given.get("node_id")
    # Compared as they stand before the move, as one statement sees them.
    known = (job_id, node_id, given["state"]) == (attempt.job_id, attempt.node_id, attempt.state)
    movable = attempt.state in LIVE and job.current_token == attempt.token and job.state in LIVE
    if not movable or (job_id or attempt.job_id, node_id or attempt.node_id) != (attempt.job_id, attempt.node_id):
        return _Found(attempt.job_id, False, job.state, known)
    goal = str(given["job_state"])
    if goal in ("pending", "held") and job.cancel_requested_at is not None:
        goal = "cancelled"
    before = job.state
    _move_job(tx, job, goal, given)
    tx.change(attempt)
    attempt.state, attempt.cause, attempt.message = str(given["state"]), _text(given.get("cause")), given.get("message")
    attempt.exit_code, attempt.ended_at = given.get("exit_code"), tx.now
    tx.drop(tx.tables.live, attempt.token)
    detail = {
        "attempt_state": attempt.state,
        "message": given.get("job_message") or attempt.message,
        "exit_code": attempt.exit_code,
        "retry_after_seconds": given.get("retry_after_seconds"),
        "learned": given.get("learned"),
    }
    detail = {name: value for name, value in detail.items() if value is not None}
    _log(tx, epoch, attempt, before, goal, actor, cause=attempt.cause, detail=detail)
    return _Found(job.id, True, goal, known)


def _move_job(tx: Tx, job: JobRow, goal: str, given: Mapping[str, Any]) -> None:
    tx.change(job)
    as_given = goal == given["job_state"]
    job.exception, job.traceback = given.get("exception"), given.get("traceback")
    job.cause = _text(given.get("cause")) if as_given else "cancelled"
    job.message = (given.get("job_message") or given.get("message")) if as_given else job.cancel_reason or None
    if given.get("learned"):
        job.learned = (job.learned or {}) | given["learned"]
    job.result = given.get("result") if goal == "completed" else None
    ended = goal in TERMINAL_JOB_STATES
    job.ended_at = tx.now if ended else None
    if not ended:
        job.node_id = job.assigned_at = job.started_at = None
    pause = given.get("retry_after_seconds")
    moments = [job.not_before, tx.now + pause if pause is not None else None]
    job.not_before = max((m for m in moments if m is not None), default=None) if goal == "pending" else None
    set_state(tx, job, goal)


def _text(cause: Cause | None) -> str | None:
    return None if cause is None else str(cause)


def _log(tx: Tx, epoch: int, row: AttemptRow, before: str, after: str, actor: str, **fields: Any) -> None:
    tx.log(
        epoch,
        actor,
        before,
        after,
        job_id=row.job_id,
        node_id=row.node_id,
        attempt=row.number,
        token=row.token,
        **fields,
    )


def history(tx: Tx, job_ids: Sequence[str]) -> dict[str, list[Past]]:
    found: dict[str, list[Past]] = {}
    for row in sorted(tx.tables.attempts.values(), key=lambda row: row.number):
        if row.job_id in job_ids and row.cause is not None and row.ended_at is not None:
            releases = [event.attempt or 0 for event in tx.tables.events if _is_release(event, row.job_id)]
            if row.number > max(releases, default=0):
                found.setdefault(row.job_id, []).append(_past(tx, row))
    return found


def _is_release(event: EventRow, job_id: str) -> bool:
    return (event.job_id, event.from_state, event.to_state) == (job_id, "held", "pending")


def _past(tx: Tx, row: AttemptRow) -> Past:
    assert row.cause is not None
    assert row.ended_at is not None
    return Past(
        row.job_id,
        row.number,
        row.node_id,
        tx.tables.nodes[row.node_id].name,
        Cause(row.cause),
        row.message or "",
        row.started_at is not None,
        row.ended_at - (row.started_at if row.started_at is not None else row.assigned_at),
    )


def blamed(tx: Tx, tokens: Sequence[int], suspicious: Sequence[Cause]) -> list[tuple[str, Cause]]:
    found = []
    for token in sorted(set(tokens) & tx.tables.attempts.keys()):
        row = tx.tables.attempts[token]
        if row.cause is None or row.cause not in suspicious:
            continue
        task = tx.tables.jobs[row.job_id].new.task
        others = [
            other
            for other in tx.tables.attempts.values()
            if other.node_id != row.node_id
            and tx.tables.jobs[other.job_id].new.task == task
            and (other.state == "completed" or other.cause in suspicious)
        ]
        last = max(others, key=lambda other: other.ended_at or 0.0, default=None)
        if last is None or last.cause is None:
            found.append((row.node_id, Cause(row.cause)))
    return found


def live(tx: Tx) -> list[Live]:
    return [_live(tx, tx.tables.attempts[token]) for token in sorted(tx.tables.live)]


def _live(tx: Tx, row: AttemptRow) -> Live:
    job, new = tx.tables.jobs[row.job_id], row.new
    return Live(
        row.token,
        row.job_id,
        row.number,
        row.node_id,
        new.incarnation,
        tuple(new.gpus),
        new.gpu_memory_bytes,
        new.cpus,
        new.ram_bytes,
        AttemptState(row.state),
        job.new.task,
        job.new.name,
        job.new.owner,
        job.new.project,
        job.new.priority,
        job.seq,
        job.new.resources,
        job.new.shape,
        job.learned,
        job.cancel_requested_at is not None,
        tx.now - row.assigned_at,
        row.lease_until - tx.now,
        job.deadline_at - tx.now if job.deadline_at is not None else None,
        job.new.time_limit_seconds,
        job.expires_at - tx.now if job.expires_at is not None and job.first_started_at is None else None,
    )


def renew(tx: Tx, node_ids: Sequence[str], lease_seconds: float) -> int:
    wanted = set(node_ids)
    rows = [row for row in (tx.tables.attempts[token] for token in tx.tables.live) if row.node_id in wanted]
    for row in rows:
        tx.change(row).lease_until = tx.now + lease_seconds
    return len(rows)


def overdue(tx: Tx) -> list[int]:
    return sorted(token for token in tx.tables.live if tx.tables.attempts[token].lease_until < tx.now)
