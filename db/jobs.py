"""Jobs: accept them, move those that wait, cancel, and what the backlog and the publisher read of them.

Every change is one statement that moves the job and writes its event, so `jobs` is the fold of `events` at any commit.
What people read (`find`, `get`) is in `db/job_pages.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import Any, NamedTuple, Self

from pydantic_core import from_json
from sqlalchemy import Connection, text

from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.states import Cause, JobState
from db.moves import sources, waiting_sources
from db.reports import known_id
from db.rows import clean, storable

#: owner and idempotency key stand in an index, whose entries PostgreSQL limits to 2,704 bytes
KEY_LIMIT_CHARACTERS = 255
_USUAL_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: rows that `waiting` holds in memory at a time
_STREAM_ROWS = 5000


@dataclass
class NewJob:
    """A job to record. `id` is the Celery task id, a UUID in its usual form; `digest` is a SHA-256 in hex.

    Raises InvalidJob for what a table cannot hold, so that one bad message never fails the batch it came in.
    """

    id: str
    task: str
    resources: dict[str, Any]
    shape: str
    headers: dict[str, Any]
    body: str
    properties: dict[str, Any]
    digest: str
    #: 0 for low to 3 for critical, `Priority.rank`
    priority: int = 1
    entry: str | None = None
    name: str | None = None
    owner: str = ""
    project: str = ""
    idempotency_key: str | None = None
    submitted_at: datetime | None = None
    not_before: datetime | None = None
    expires_at: datetime | None = None
    time_limit_seconds: float | None = None
    #: from its acceptance on, by the database's clock
    start_by_seconds: float | None = None
    deadline_seconds: float | None = None
    array_id: str | None = None
    array_index: int | None = None
    #: the whole message as it came, a JSON text; None: it is made of headers, body and properties
    envelope: str | None = None

    def __post_init__(self) -> None:
        if _USUAL_ID.fullmatch(self.id) is None:
            raise InvalidJob("id", f'"{self.id}" is not a UUID in its usual form', "Leave the task id out")
        for field in ("owner", "idempotency_key"):
            if len(getattr(self, field) or "") > KEY_LIMIT_CHARACTERS:
                raise InvalidJob(field, f"is longer than {KEY_LIMIT_CHARACTERS} characters")

    @cached_property
    def row(self) -> str:
        """Its JSON in the statement's batch. Whoever reads messages in another thread asks for it there already."""
        shared, own = _shared(_get_shared(self)), _members(_OWN, _get_own(self))
        resources = storable(self.resources) if self.resources else "{}"
        return f'{{"id": "{self.id}", "digest": "{self.digest}", "resources": {resources}{shared}{own}}}'

    @property
    def stored_envelope(self) -> str:
        return self.envelope or StoredMessage(self.headers, self.body, self.properties).envelope


#: What many jobs have in common, and what each has for itself or not at all.
_SHARED = (
    *("task", "entry", "name", "owner", "project", "priority", "shape"),
    *("time_limit_seconds", "start_by_seconds", "deadline_seconds"),
)
_OWN = ("idempotency_key", "submitted_at", "not_before", "expires_at", "array_id", "array_index")
_get_shared, _get_own = attrgetter(*_SHARED), attrgetter(*_OWN)


@lru_cache(maxsize=1024)
def _shared(values: tuple[Any, ...]) -> str:
    return _members(_SHARED, values)


def _members(names: tuple[str, ...], values: tuple[Any, ...]) -> str:
    """The members of a JSON object that are not None, with a comma before each."""
    given = {name: value for name, value in zip(names, values, strict=True) if value is not None}
    return f", {storable(given)[1:-1]}" if given else ""


class Accepted(NamedTuple):
    """The record's word on one NewJob: it is `job_id` there, which differs from `id` if its idempotency key was known.

    `conflict`: another job has this id, nothing was recorded. Not created and no conflict: it was recorded before;
    `same` is then whether what was recorded has this digest, which an idempotency key alone does not say.
    """

    id: str
    job_id: str
    state: JobState
    created: bool
    conflict: bool
    same: bool
    #: order of acceptance
    seq: int


class Waiting(NamedTuple):
    """What the backlog knows of a pending job. Seconds count from now by the database's clock."""

    id: str
    seq: int
    owner: str
    project: str
    priority: int
    #: its resources as one text, equal for equal ones
    shape: str
    #: what replaces fields of its resources
    learned: dict[str, Any] | None
    starts_in_seconds: float | None
    #: None for one that started before, too: it has kept its `start_by`
    expires_in_seconds: float | None
    deadline_in_seconds: float | None
    #: of each attempt
    time_limit_seconds: float | None


@dataclass(frozen=True)
class StoredMessage:
    """The Celery message of a job, to publish it (again)."""

    headers: dict[str, Any]
    body: str
    properties: dict[str, Any]

    @classmethod
    def read(cls, envelope: str) -> Self:
        try:
            message = from_json(envelope)
        except ValueError:
            # Half a surrogate pair, which `json` does not mind.
            message = json.loads(envelope)
        return cls(message.pop("headers"), message.pop("body"), message)

    @property
    def envelope(self) -> str:
        """The message as one JSON text."""
        return storable(self.properties | {"headers": self.headers, "body": self.body})


@dataclass(frozen=True)
class CancelOutcome:
    """`before` and `state` differ if the job waited and is cancelled by now; a live one's attempt has to be stopped."""

    job_id: str
    before: JobState
    state: JobState
    token: int | None
    node_id: str | None


#: A batch of jobs as a table: `NewJob.row` in `:rows`, and beside them their messages, as one text, since reading those
#: as JSON and storing them as jsonb would cost more than all the rest. No JSON text contains the separator (RFC 7464).
NEW_FIELDS = """
    id uuid, task text, entry text, name text, owner text, project text, idempotency_key text, priority smallint,
    resources jsonb, shape text, digest text, submitted_at timestamptz, not_before timestamptz, expires_at timestamptz,
    time_limit_seconds double precision, start_by_seconds double precision, deadline_seconds double precision,
    array_id uuid, array_index int"""
SEPARATOR = "\x1e"
#: what is inserted of them, and how
NEW_COLUMNS = """
    id, task, entry, name, owner, project, idempotency_key, priority, resources, shape, envelope, digest, submitted_at,
    accepted_at, not_before, expires_at, time_limit_seconds, deadline_at, array_id, array_index"""
NEW_VALUES = """
    id, task, entry, name, owner, project, idempotency_key, priority, resources, shape, envelope, decode(digest, 'hex'),
    submitted_at, statement_timestamp(), not_before,
    least(expires_at, statement_timestamp() + make_interval(secs => start_by_seconds)), time_limit_seconds,
    statement_timestamp() + make_interval(secs => deadline_seconds), array_id, array_index"""


def table_of(fields: str, rows: str = ":rows", envelopes: str = ":envelopes") -> str:
    """The FROM-clause of these two parameters; each row has these fields."""
    names = ", ".join(field.split()[0] for field in fields.split(","))
    return f"""ROWS FROM (json_to_recordset(CAST({rows} AS json)) AS ({fields}),
        string_to_table({envelopes}, chr(30))) AS given ({names}, envelope)"""


# DO NOTHING without a target covers the id and the idempotency key, against the table and within the batch. The rows
# come in the order of the batch, so `seq` is the order of arrival.
_ACCEPT = text(
    f"""
    WITH added AS (
        INSERT INTO jobs ({NEW_COLUMNS}, state) SELECT {NEW_VALUES}, 'pending' FROM {table_of(NEW_FIELDS)}
        ON CONFLICT DO NOTHING
        RETURNING id, seq
    ), logged AS (
        INSERT INTO events (job_id, epoch, to_state, actor) SELECT id, :epoch, 'pending', 'client' FROM added
    )
    SELECT coalesce(array_agg(seq), '{{}}'), CASE WHEN count(*) < :count THEN array_agg(id::text) END FROM added"""  # noqa: S608 - constants
)

_KNOWN = text(
    """
    SELECT ordinality, found.*
    FROM ROWS FROM (json_to_recordset(CAST(:rows AS json)) AS (
        id uuid, owner text, idempotency_key text, digest text
    )) WITH ORDINALITY AS given (id, owner, idempotency_key, digest, ordinality)
    CROSS JOIN LATERAL (
        SELECT jobs.id::text AS job_id, state, seq, jobs.digest = decode(given.digest, 'hex') AS same, true AS by_id
        FROM jobs WHERE jobs.id = given.id
        UNION ALL
        SELECT jobs.id::text, state, seq, jobs.digest = decode(given.digest, 'hex'), false
        FROM jobs WHERE jobs.owner = given.owner AND jobs.idempotency_key = given.idempotency_key
    ) AS found
    ORDER BY ordinality, by_id"""
)


def accept(tx: Connection, epoch: int, jobs: Sequence[NewJob]) -> list[Accepted]:
    """Record jobs; the answers stand in the order of `jobs`. Doing it again changes nothing and answers the same."""
    if not jobs:
        return []
    rows = f"[{','.join(job.row for job in jobs)}]"
    envelopes = SEPARATOR.join(job.stored_envelope for job in jobs)
    values = {"rows": rows, "envelopes": envelopes, "count": len(jobs), "epoch": epoch}
    numbers, ids = tx.execute(_ACCEPT, values).one()
    # Without ids: all were added, in their order.
    added: dict[str, int] = dict(zip([job.id for job in jobs] if ids is None else ids, numbers, strict=False))
    # A second message with the same id in one batch is not the one that was added.
    answers: list[Accepted | None] = [
        Accepted(job.id, job.id, JobState.PENDING, True, False, True, seq) if (seq := added.pop(job.id, None)) else None
        for job in jobs
    ]
    if None in answers:
        # Rows come by key first, then by id: what the id says is the last word.
        for row in tx.execute(_KNOWN, {"rows": rows}):
            index = row.ordinality - 1
            known = answers[index]
            if known is None or not known.created:
                conflict = row.by_id and not row.same
                state = JobState(row.state)
                answers[index] = Accepted(jobs[index].id, row.job_id, state, False, conflict, row.same, row.seq)
    return [answer for answer in answers if answer is not None]


def recorded(tx: Connection, jobs: Sequence[NewJob]) -> set[str]:
    """The ids of those of these that the record knows already, by their id or their idempotency key."""
    if not jobs:
        return set()
    rows = f"[{','.join(job.row for job in jobs)}]"
    return {jobs[row.ordinality - 1].id for row in tx.execute(_KNOWN, {"rows": rows})}


_WAITING = text(
    """
    SELECT id::text AS id, seq, owner, project, priority, shape, learned,
        extract(epoch FROM not_before - statement_timestamp())::float8 AS starts_in_seconds,
        CASE WHEN first_started_at IS NULL THEN extract(epoch FROM expires_at - statement_timestamp())::float8 END
            AS expires_in_seconds,
        extract(epoch FROM deadline_at - statement_timestamp())::float8 AS deadline_in_seconds, time_limit_seconds
    FROM jobs WHERE state = 'pending' AND (CAST(:ids AS uuid[]) IS NULL OR id = ANY(CAST(:ids AS uuid[])))
    ORDER BY priority DESC, seq"""
).execution_options(yield_per=_STREAM_ROWS)


def waiting(tx: Connection, ids: Sequence[str] | None = None) -> Iterator[Waiting]:
    """Pending jobs, the most urgent first: all of them, or of these. Streamed through a cursor: a million of them need
    little memory.
    """
    with tx.execute(_WAITING, {"ids": None if ids is None else list(ids)}) as rows:
        yield from map(Waiting._make, rows)


class Held(NamedTuple):
    """A held job that has a deadline, so many seconds from now by the database's clock."""

    id: str
    story: str | None
    deadline_in_seconds: float


_HELD = text(
    """
    SELECT id::text, message, extract(epoch FROM deadline_at - statement_timestamp())::float8
    FROM jobs WHERE state = 'held' AND ended_at IS NULL AND deadline_at IS NOT NULL
        AND (CAST(:ids AS uuid[]) IS NULL OR id = ANY(CAST(:ids AS uuid[])))
    ORDER BY id"""
)


def held(tx: Connection, ids: Sequence[str] | None = None) -> list[Held]:
    """Held jobs with a deadline: all of them, or of these."""
    return [Held(*row) for row in tx.execute(_HELD, {"ids": None if ids is None else list(ids)})]


_MESSAGES = text("SELECT id::text, envelope FROM jobs WHERE id = ANY(CAST(:ids AS uuid[]))")


def messages(tx: Connection, ids: Sequence[str]) -> dict[str, StoredMessage]:
    """The messages of these jobs, by id."""
    return {row[0]: StoredMessage.read(row[1]) for row in tx.execute(_MESSAGES, {"ids": list(ids)})}


_REPLACE = text(
    """
    UPDATE jobs SET envelope = :envelope,
        not_before = coalesce(statement_timestamp() + make_interval(secs => :after_seconds), :not_before)
    WHERE id = CAST(:id AS uuid) AND state IN ('pending', 'assigned', 'running', 'held')"""
)


def replace_message(
    tx: Connection,
    job_id: str,
    message: StoredMessage,
    not_before: datetime | None,
    after_seconds: float | None = None,
) -> bool:
    """Keep a newer message of a job that has not ended: a task that retries itself publishes one with its own id.

    It is to be placed `after_seconds` from now, by the database's clock, or without them not before a given moment.
    """
    values = {
        "id": job_id,
        "envelope": message.envelope,
        "not_before": not_before,
        "after_seconds": after_seconds,
    }
    return bool(tx.execute(_REPLACE, values).rowcount)


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
