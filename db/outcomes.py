"""How jobs ended, for whoever must say it once more."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from cyxwiz_tasks.states import JobState


class End(NamedTuple):
    """The place of a job in the order of ends."""

    ended_at: datetime
    job_id: str


class Outcome(NamedTuple):
    """What the record knows of a job that ended."""

    job_id: str
    state: JobState
    cause: str | None
    message: str | None
    exception: str | None
    traceback: str | None
    result: Any


# The row comparison alone would not be taken for a condition of the index on `ended_at`.
_PAGE = """
    FROM jobs
    WHERE ended_at >= coalesce(CAST(:after_at AS timestamptz), statement_timestamp() - make_interval(secs => :oldest))
        AND ended_at <= statement_timestamp() - make_interval(secs => :youngest)
        AND (CAST(:after_at AS timestamptz) IS NULL
            OR (ended_at, id) > (CAST(:after_at AS timestamptz), CAST(:after_id AS uuid)))
    ORDER BY ended_at, id LIMIT :limit"""
_ENDS = text(f"SELECT ended_at, id::text {_PAGE}")
_MEMBERS = text(f'SELECT ended_at, id::text, envelope ~ \'"group": ?"\' {_PAGE}')


def ends(
    tx: Connection, after: End | None, oldest_seconds: float, youngest_seconds: float, limit: int = 1000
) -> list[End]:
    """Jobs that ended after the one at `after`, or without one at most `oldest_seconds` ago; not the youngest ones."""
    return [End(*row) for row in tx.execute(_ENDS, _page(after, oldest_seconds, youngest_seconds, limit))]


def members(
    tx: Connection, after: End | None, oldest_seconds: float, youngest_seconds: float, limit: int = 1000
) -> list[tuple[End, bool]]:
    """The same, each with whether it belongs to a group in Celery."""
    rows = tx.execute(_MEMBERS, _page(after, oldest_seconds, youngest_seconds, limit))
    return [(End(row[0], row[1]), row[2]) for row in rows]


def _page(after: End | None, oldest_seconds: float, youngest_seconds: float, limit: int) -> dict[str, Any]:
    return {
        "after_at": after.ended_at if after is not None else None,
        "after_id": after.job_id if after is not None else None,
        "oldest": oldest_seconds,
        "youngest": youngest_seconds,
        "limit": limit,
    }


# A message is one text. Within it the texts of a user have their quotation marks escaped, so this is Celery's header.
_LOOKED_AT = text(
    """
    SELECT id::text FROM jobs
    WHERE id = ANY(CAST(:ids AS uuid[])) AND ended_at IS NOT NULL AND envelope !~ '"ignore_result": ?true'"""
)


def looked_at(tx: Connection, ids: Sequence[str]) -> list[str]:
    """Those of these jobs that have ended and whose submitter may look at the result."""
    return [row[0] for row in tx.execute(_LOOKED_AT, {"ids": list(ids)})]


_OUTCOMES = text(
    """
    SELECT id::text, state, cause, message, exception, traceback, result FROM jobs
    WHERE id = ANY(CAST(:ids AS uuid[])) AND ended_at IS NOT NULL"""
)


def outcomes(tx: Connection, ids: Sequence[str]) -> list[Outcome]:
    """The outcomes of those of these jobs that have ended."""
    rows = tx.execute(_OUTCOMES, {"ids": list(ids)})
    return [Outcome(row[0], JobState(row[1]), *row[2:]) for row in rows]
