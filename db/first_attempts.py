"""Jobs that are placed as they arrive: recorded together with their first attempt, by one statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from db.attempts import NewAttempt
from db.fenced import refuse
from db.new_jobs import NEW_COLUMNS, NEW_FIELDS, NEW_VALUES, SEPARATOR, NewJob, table_of
from db.rows import storable


class FirstAttempt(NamedTuple):
    token: int
    #: the job's order of acceptance
    seq: int


_FIELDS = f"""{NEW_FIELDS}, node_id uuid, incarnation text, gpus int[], gpu_memory_bytes bigint, cpus int,
    ram_bytes bigint, scores jsonb"""

_GIVEN = table_of(_FIELDS, "%(rows)s", "%(envelopes)s")

# In the driver's own words: a statement that SQLAlchemy has to look up first takes 0.15 ms longer, of a job's start.
# Alone in its transaction, so it fences itself: the shared lock makes the next leader wait for this statement; under a
# newer epoch `given` is empty. A job that is known already needs another answer than this statement can give: then none
# is recorded. The events come in the order of the moves: UNION ALL reads, and numbers, one part after the other.
_ACCEPT_PLACED = f"""
    WITH fence AS MATERIALIZED (
        SELECT epoch FROM leadership WHERE id = 1 FOR SHARE
    ), given AS MATERIALIZED (
        SELECT given.*, nextval('attempt_token_seq') AS token FROM fence CROSS JOIN {_GIVEN}
        WHERE fence.epoch = %(epoch)s AND NOT EXISTS (SELECT FROM jobs WHERE jobs.id = ANY(CAST(%(ids)s AS uuid[])))
    ), added AS (
        INSERT INTO jobs ({NEW_COLUMNS}, state, node_id, current_token, attempts, assigned_at)
        SELECT {NEW_VALUES}, 'assigned', node_id, token, 1, statement_timestamp() FROM given
        RETURNING id, seq
    ), placed AS (
        INSERT INTO attempts (token, job_id, number, node_id, incarnation, gpus, gpu_memory_bytes, cpus, ram_bytes,
            state, epoch, assigned_at, lease_until, scores)
        SELECT token, id, 1, node_id, incarnation, gpus, gpu_memory_bytes, cpus, ram_bytes, 'assigned', %(epoch)s,
            statement_timestamp(), statement_timestamp() + make_interval(secs => %(lease_seconds)s), scores
        FROM given
    ), logged AS (
        INSERT INTO events (job_id, node_id, attempt, token, epoch, from_state, to_state, actor)
        SELECT id, NULL, NULL, NULL, %(epoch)s, NULL, 'pending', 'client' FROM given
        UNION ALL
        SELECT id, node_id, 1, token, %(epoch)s, 'pending', 'assigned', 'scheduler' FROM given
    )
    SELECT epoch, found.* FROM fence LEFT JOIN (
        SELECT given.id::text AS id, token, seq FROM given JOIN added ON added.id = given.id
    ) AS found ON true"""  # noqa: S608 - constants of this project


def accept_placed(
    tx: Connection, epoch: int, jobs: Sequence[NewJob], attempts: Sequence[NewAttempt], lease_seconds: float
) -> dict[str, FirstAttempt]:
    """Record new jobs, each with an attempt on the place that was chosen for it; by job id.

    All or none: empty if one of them is known already. Their ids must differ, and none may have an idempotency key.
    `tx` may be a connection in autocommit mode. Raises NotLeader.
    """
    rows = [f"{job.row[:-1]}, {_place(attempt)}}}" for job, attempt in zip(jobs, attempts, strict=True)]
    values = {
        "rows": f"[{','.join(rows)}]",
        "envelopes": SEPARATOR.join(job.stored_envelope for job in jobs),
        "ids": [job.id for job in jobs],
        "epoch": epoch,
        "lease_seconds": lease_seconds,
    }
    found = tx.exec_driver_sql(_ACCEPT_PLACED, values).all()
    if found[0].epoch != epoch:
        refuse(epoch, found[0].epoch)
    return {row.id: FirstAttempt(row.token, row.seq) for row in found if row.id is not None}


def _place(attempt: NewAttempt) -> str:
    return storable({name: value for name, value in vars(attempt).items() if name != "job_id"})[1:-1]
