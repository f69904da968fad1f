"""How long attempts took of late, and whose they were: what an estimate of a start rests on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, text

#: the newest attempts of all, found by the primary key: an answer costs the same however long the record is
_WINDOW = 1000


class Took(NamedTuple):
    """An attempt that ended by itself. `name` is its job's, or else its task's."""

    name: str
    owner: str
    seconds: float


# An attempt that failed gives its place back just as one that completed.
_RECENT = text(
    """
    SELECT coalesce(jobs.name, jobs.task), owner,
        extract(epoch FROM attempts.ended_at - attempts.assigned_at)::float8
    FROM attempts JOIN jobs ON jobs.id = attempts.job_id
    WHERE token > (SELECT max(token) FROM attempts) - :window AND attempts.state IN ('completed', 'failed')
    ORDER BY token DESC"""
)


def recent(tx: Connection) -> list[Took]:
    """What the newest attempts took from their assignment to their end, the newest first."""
    return [Took(*row) for row in tx.execute(_RECENT, {"window": _WINDOW})]


_NAMES = text("SELECT id::text, coalesce(name, task) FROM jobs WHERE id = ANY(CAST(:ids AS uuid[]))")


def names(tx: Connection, job_ids: Sequence[str]) -> dict[str, str]:
    """By job, its name, or else its task's."""
    return {row[0]: row[1] for row in tx.execute(_NAMES, {"ids": list(job_ids)})} if job_ids else {}
