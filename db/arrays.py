"""Arrays: jobs that were sent as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from cyxwiz_tasks.protocol.headers import Array
from cyxwiz_tasks.states import JobState
from db.reports import known_id
from db.rows import readable, storable

_RECORD = text(
    """
    INSERT INTO arrays (id, name, owner, size, at_most, early_stopping)
    SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS given (
        id uuid, name text, owner text, size int, at_most int, early_stopping jsonb
    )
    ON CONFLICT DO NOTHING"""
)


def record(tx: Connection, arrays: Mapping[str, tuple[Array, str]]) -> None:
    """Keep new arrays, each with its owner; those that are known stay as they are."""
    rows = [array.model_dump(mode="json") | {"owner": owner} for array, owner in arrays.values()]
    tx.execute(_RECORD, {"rows": storable(rows)})


_MEMBERS = text(
    """
    SELECT jobs.id::text, array_id::text, at_most, early_stopping FROM jobs JOIN arrays ON arrays.id = array_id
    WHERE array_id IS NOT NULL AND ended_at IS NULL"""
)


class Member(NamedTuple):
    """A job of an array that has not ended, and the array's rules: how many may be at work, which end early."""

    job_id: str
    array_id: str
    at_most: int | None
    early_stopping: dict[str, Any] | None


def members(tx: Connection) -> Iterator[Member]:
    """The jobs of arrays that have not ended."""
    return map(Member._make, tx.execute(_MEMBERS))


_GOING_ON = text(
    "SELECT id::text FROM jobs WHERE array_id = CAST(:id AS uuid) AND ended_at IS NULL ORDER BY array_index"
)


def going_on(tx: Connection, array_id: str) -> list[str]:
    """The jobs of an array that have not ended."""
    return [row[0] for row in tx.execute(_GOING_ON, {"id": array_id})]


_GET = text("SELECT * FROM arrays WHERE id = CAST(:id AS uuid)")
_COUNTS = text("SELECT state, count(*) FROM jobs WHERE array_id = CAST(:id AS uuid) GROUP BY state")


def get(tx: Connection, array_id: str) -> dict[str, Any] | None:
    """An array, ready for JSON, with `counts` of its jobs by state. None: there is no such array."""
    if known_id(array_id) is None:
        return None
    row = tx.execute(_GET, {"id": array_id}).one_or_none()
    if row is None:
        return None
    found = {row[0]: row[1] for row in tx.execute(_COUNTS, {"id": array_id})}
    return readable(row) | {"counts": {str(state): found.get(str(state), 0) for state in JobState}}
