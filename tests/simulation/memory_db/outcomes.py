"""`db.outcomes` in memory."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from cyxwiz_tasks.states import JobState
from db.outcomes import End, Outcome
from tests.simulation.memory_db.tables import JobRow, Tx


def ends(tx: Tx, after: End | None, oldest_seconds: float, youngest_seconds: float, limit: int = 1000) -> list[End]:
    rows = [row for row in tx.tables.jobs.values() if row.ended_at is not None]
    found = [_end(row) for row in rows if row.ended_at is not None and row.ended_at <= tx.now - youngest_seconds]
    if after is None:
        oldest = datetime.fromtimestamp(tx.now - oldest_seconds, UTC)
        return sorted(end for end in found if end.ended_at >= oldest)[:limit]
    return sorted(end for end in found if end > after)[:limit]


def members(
    tx: Tx, after: End | None, oldest_seconds: float, youngest_seconds: float, limit: int = 1000
) -> list[tuple[End, bool]]:
    """Nobody sends groups here."""
    return [(end, False) for end in ends(tx, after, oldest_seconds, youngest_seconds, limit)]


def looked_at(tx: Tx, ids: Sequence[str]) -> list[str]:
    return [id for id in ids if id in tx.tables.jobs and tx.tables.jobs[id].ended_at is not None]


def outcomes(tx: Tx, ids: Sequence[str]) -> list[Outcome]:
    rows = [tx.tables.jobs[id] for id in ids if id in tx.tables.jobs]
    return [
        Outcome(row.id, JobState(row.state), row.cause, row.message, row.exception, row.traceback, row.result)
        for row in rows
        if row.ended_at is not None
    ]


def _end(row: JobRow) -> End:
    assert row.ended_at is not None
    return End(datetime.fromtimestamp(row.ended_at, UTC), row.id)
