"""Accept jobs: record those that are new, and say of each where it stands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.states import JobState
from db.job_messages import StoredMessage
from db.rows import storable

#: owner and idempotency key stand in an index, whose entries PostgreSQL limits to 2,704 bytes
KEY_LIMIT_CHARACTERS = 255
_USUAL_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


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
