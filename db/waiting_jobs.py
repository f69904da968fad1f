"""What the scheduler reads of jobs that have no attempt under way: its backlog, and those that are held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

#: rows that `waiting` holds in memory at a time
_STREAM_ROWS = 5000


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
