"""`db.waiting_jobs` in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from db.waiting_jobs import Held, Waiting
from tests.simulation.memory_db.tables import Tx


def waiting(tx: Tx, ids: Sequence[str] | None = None) -> Iterator[Waiting]:
    rows = [tx.tables.jobs[id] for id in tx.tables.pending if ids is None or id in ids]
    for row in sorted(rows, key=lambda row: (-row.new.priority, row.seq)):
        yield Waiting(
            row.id,
            row.seq,
            row.new.owner,
            row.new.project,
            row.new.priority,
            row.new.shape,
            row.learned,
            row.not_before - tx.now if row.not_before is not None else None,
            row.expires_at - tx.now if row.expires_at is not None and row.first_started_at is None else None,
            row.deadline_at - tx.now if row.deadline_at is not None else None,
            row.new.time_limit_seconds,
        )


def held(tx: Tx, ids: Sequence[str] | None = None) -> list[Held]:
    rows = (row for id, row in tx.tables.jobs.items() if row.state == "held" and (ids is None or id in ids))
    found = [Held(row.id, row.message, row.deadline_at - tx.now) for row in rows if row.deadline_at is not None]
    return sorted(found)
