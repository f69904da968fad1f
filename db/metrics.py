"""What jobs reported while they ran: the rows of their loss curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from db.reports import check_ids, check_number, known_id
from db.rows import batch, readable

#: the last second (Unix time) that a timestamp shows with four digits of a year
LATEST_SECOND = 253402300799.0


@dataclass
class NewMetric:
    """One `ctx.report()`: `at` is a Unix time by the node's clock. Raises ProtocolError for ids that are none."""

    job_id: str
    token: int
    node_id: str
    at: float
    values: dict[str, Any]

    def __post_init__(self) -> None:
        check_ids(self.job_id, self.node_id)
        check_number("token", self.token, 64)
        if not 0 <= self.at <= LATEST_SECOND:
            self.at = 0.0


# A batch that a crashed scheduler had committed comes again: equal rows of one moment are one row.
_APPEND = text(
    """
    INSERT INTO metrics (job_id, attempt, at, values)
    SELECT given.job_id, attempts.number, moment.at, given.values
    FROM ROWS FROM (json_to_recordset(CAST(:rows AS json)) AS (
        job_id uuid, token bigint, node_id uuid, at double precision, values jsonb
    )) WITH ORDINALITY AS given (job_id, token, node_id, at, values, ordinality)
    CROSS JOIN LATERAL (SELECT to_timestamp(given.at) AS at) AS moment
    JOIN attempts ON attempts.token = given.token AND attempts.job_id = given.job_id
        AND attempts.node_id = given.node_id
    WHERE NOT EXISTS (
        SELECT 1 FROM metrics AS known WHERE known.job_id = given.job_id AND known.attempt = attempts.number
            AND known.at = moment.at AND known.values = given.values
    )
    ORDER BY ordinality"""
)


def append(tx: Connection, rows: Sequence[NewMetric]) -> int:
    """Keep rows of attempts that exist, on the node that has them; how many were new."""
    return tx.execute(_APPEND, {"rows": batch(rows)}).rowcount if rows else 0


_OF_JOB = text(
    """
    SELECT * FROM (
        SELECT seq, attempt, extract(epoch FROM at)::float8 AS at, values FROM metrics
        WHERE job_id = CAST(:id AS uuid) AND seq > :after AND attempt = coalesce(:attempt, attempt)
        ORDER BY attempt DESC, at DESC, seq DESC LIMIT :limit
    ) AS newest ORDER BY attempt, at, seq"""
)


def of_job(
    tx: Connection, job_id: str, attempt: int | None = None, after: int = 0, limit: int = 10_000
) -> list[dict[str, Any]]:
    """The newest `limit` rows of a job, oldest first, ready for JSON; of one attempt, or of all."""
    if known_id(job_id) is None:
        return []
    values = {"id": job_id, "attempt": attempt, "after": after, "limit": limit}
    return [readable(row) for row in tx.execute(_OF_JOB, values)]


_TOLD_IN_ARRAY = text(
    """
    SELECT metrics.seq, job_id::text, values ->> 'epoch', values ->> :metric
    FROM metrics JOIN jobs ON jobs.id = job_id
    WHERE array_id = CAST(:array AS uuid) AND metrics.seq > :after
        AND values ->> 'epoch' IS NOT NULL
    ORDER BY metrics.seq LIMIT :limit"""
)


class Told(NamedTuple):
    """What a job reported: texts, which may be no numbers. `value` is None in a row without the metric."""

    seq: int
    job_id: str
    epoch: str
    value: str | None


def told_in_array(tx: Connection, array_id: str, metric: str, after: int, limit: int = 10_000) -> list[Told]:
    """The epochs that the jobs of an array reported since the row `after`, in that order, with one metric of theirs."""
    values = {"array": array_id, "metric": metric, "after": after, "limit": limit}
    return [Told(*row) for row in tx.execute(_TOLD_IN_ARRAY, values)]
