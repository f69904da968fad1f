"""Jobs as people read them: lists, one job with its attempts, and counts. All of it is ready for JSON."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, Text, and_, cast, func, literal_column, or_, select

from cyxwiz_tasks.states import JobState, Priority
from db import gangs
from db.models import Attempt, Job, Node
from db.moves import LIVE
from db.reports import known_id
from db.rows import clean, readable

_LISTED = (
    Job.id,
    Job.seq,
    Job.name,
    Job.task,
    Job.owner,
    Job.project,
    Job.priority,
    Job.state,
    Job.cause,
    Job.message,
    Job.node_id,
    Node.name.label("node"),
    Job.attempts,
    Job.submitted_at,
    Job.accepted_at,
    Job.assigned_at,
    Job.started_at,
    Job.ended_at,
    Job.not_before,
    Job.cancel_requested_at,
    Job.array_id,
    Job.array_index,
)
_SHOWN = (
    *_LISTED,
    Job.entry,
    Job.idempotency_key,
    Job.resources,
    Job.exception,
    Job.traceback,
    Job.result,
    Job.learned,
    Job.expires_at,
    Job.deadline_at,
    Job.time_limit_seconds,
    Job.cancel_reason,
    Job.current_token.label("token"),
)
_PRIORITIES = tuple(Priority)


def find(
    tx: Connection,
    states: Collection[JobState] | None = None,
    owner: str | None = None,
    name: str | None = None,
    node: str | None = None,
    limit: int = 50,
    before: int | None = None,
    array: str | None = None,
    after_index: int = -1,
) -> list[dict[str, Any]]:
    """Jobs, the newest first, up to `limit`, that match all filters.

    `name` is a part of a job's name or task, whatever the case; `node` a node's name or id. `before` is the `seq` of
    the last job of the page before. Those of an `array` come by their indexes, from beyond `after_index`.
    """
    page = _selected(_LISTED).order_by(Job.seq.desc()).limit(limit)
    if states:
        page = page.where(_in_states(states))
    if owner is not None:
        page = page.where(Job.owner == clean(owner))
    if name:
        part = clean(name)
        page = page.where(or_(Job.name.icontains(part, autoescape=True), Job.task.icontains(part, autoescape=True)))
    if node:
        page = page.where(or_(Node.name == clean(node), cast(Job.node_id, Text) == clean(node)))
    if array is not None:
        if known_id(array) is None:
            return []
        page = page.where(Job.array_id == array, Job.array_index > after_index).order_by(None).order_by(Job.array_index)
    if before is not None:
        page = page.where(Job.seq < before)
    return [_page(row) for row in tx.execute(page)]


def _in_states(states: Collection[JobState]) -> ColumnElement[bool]:
    """The states as words: a plan for whatever the parameters are takes no index on those that wait, or are held."""
    wanted = or_(*(Job.state == _word(JobState(state)) for state in states))
    if set(states) <= set(LIVE):
        # No index leads to jobs that are under way, but one leads to their attempts.
        under_way = select(Attempt.job_id).where(Attempt.state.in_([_word(state) for state in LIVE]))
        return and_(wanted, Job.id.in_(under_way))
    return wanted


def _word(state: str) -> ColumnElement[str]:
    return literal_column(f"'{state}'")


def get(tx: Connection, job_id: str) -> dict[str, Any] | None:
    """One job with its attempts, the first one first, and a gang with their members. None: there is no such job."""
    if known_id(job_id) is None:
        return None
    shown = _selected(_SHOWN).where(Job.id == job_id)
    row = tx.execute(shown).one_or_none()
    if row is None:
        return None
    attempts = (
        select(Attempt.__table__, Node.name.label("node"))
        .join(Node, Node.id == Attempt.node_id)
        .where(Attempt.job_id == job_id)
        .order_by(Attempt.number)
    )
    page = _page(row) | {"attempt_list": [readable(attempt) for attempt in tx.execute(attempts)]}
    is_gang = page["resources"].get("nodes", 1) > 1
    return page | {"members": gangs.of_job(tx, job_id)} if is_gang else page


def counts(tx: Connection) -> dict[str, int]:
    """How many jobs are in each state."""
    found = {row[0]: row[1] for row in tx.execute(select(Job.state, func.count()).group_by(Job.state))}
    return {str(state): found.get(str(state), 0) for state in JobState}


def _selected(columns: tuple[Any, ...]) -> Select[Any]:
    return select(*columns).outerjoin(Node, Node.id == Job.node_id)


def _page(row: Row[Any]) -> dict[str, Any]:
    page = readable(row)
    return page | {"priority": str(_PRIORITIES[page["priority"]])}
