"""Which jobs wait for the end of which others.

A dependency is judged in the transaction that ends the job it is on, or in that which records it, so a committed record
never holds a pending job whose dependencies have all been decided.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from db.rows import readable, storable


class Dependency(NamedTuple):
    job_id: str
    on_id: str
    #: one of `cyxwiz_tasks.dependency.KINDS`
    kind: str


class Verdict(NamedTuple):
    """What has become of a dependency."""

    job_id: str
    on_id: str
    kind: str
    met: bool
    #: the state in which the job that it is on has ended; None: there is no such job
    state: str | None


_KNOWN = text(
    """
    SELECT id::text FROM jobs WHERE id = ANY(CAST(:ids AS uuid[]))
    UNION SELECT id::text FROM arrays WHERE id = ANY(CAST(:ids AS uuid[]))"""
)


def known(tx: Connection, ids: Sequence[str]) -> set[str]:
    """Those of these ids that are jobs."""
    return {row[0] for row in tx.execute(_KNOWN, {"ids": list(ids)})}


_RECORD = text(
    """
    INSERT INTO dependencies (job_id, on_id, kind)
    SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS given (job_id uuid, on_id uuid, kind text)
    ON CONFLICT DO NOTHING"""
)


def record(tx: Connection, dependencies: Sequence[Dependency]) -> None:
    """Keep the dependencies of new jobs; `judge` says what has become of them already."""
    tx.execute(_RECORD, {"rows": storable([dependency._asdict() for dependency in dependencies])})


# An array has ended when all its jobs have, and is completed if they all are. Its jobs may come in parts: those that
# the record lacks go on, too. After a day nobody sends them any more, and the oldest may have been forgotten.
_JUDGE = text(
    """
    WITH asked AS MATERIALIZED (
        SELECT job_id, on_id, kind FROM dependencies WHERE on_id = ANY(CAST(:on_ids AS uuid[])) AND met_at IS NULL
    ), ends AS MATERIALIZED (
        SELECT on_id, count(jobs.id) AS jobs, count(jobs.id) FILTER (WHERE ended_at IS NULL) AS going_on,
            count(jobs.id) FILTER (WHERE state = 'completed') AS completed,
            min(state) FILTER (WHERE ended_at IS NOT NULL AND state <> 'completed') AS bad_state,
            coalesce(max(size) FILTER (WHERE arrays.accepted_at > statement_timestamp() - interval '1 day'), 0) AS size
        FROM (SELECT DISTINCT on_id FROM asked) AS named
        LEFT JOIN jobs ON jobs.id = on_id OR (array_id IS NOT NULL AND array_id = on_id)
        LEFT JOIN arrays ON arrays.id = on_id
        GROUP BY on_id
    ), judged AS MATERIALIZED (
        SELECT job_id, on_id, kind, CASE WHEN jobs > 0 THEN coalesce(bad_state, 'completed') END AS state,
            CASE WHEN jobs = 0 OR (kind = 'ok' AND bad_state IS NOT NULL) THEN false
                WHEN going_on > 0 OR jobs < size THEN NULL
                ELSE kind = 'any' OR (kind = 'ok') = (completed = jobs) END AS met
        FROM asked JOIN ends USING (on_id)
    ), marked AS (
        UPDATE dependencies SET met_at = statement_timestamp()
        FROM judged WHERE judged.met AND dependencies.job_id = judged.job_id AND dependencies.on_id = judged.on_id
            AND dependencies.kind = judged.kind
    )
    SELECT job_id::text, on_id::text, kind, met, state FROM judged WHERE met IS NOT NULL
    ORDER BY job_id, on_id, kind"""
)


def judge(tx: Connection, on_ids: Sequence[str]) -> list[Verdict]:
    """Of the dependencies on these jobs and arrays, those that are decided: what holds is marked, the rest cannot."""
    return [Verdict(*row) for row in tx.execute(_JUDGE, {"on_ids": list(on_ids)})]


_OLD_ARRAYS = text(
    """
    SELECT id::text FROM arrays WHERE accepted_at <= statement_timestamp() - interval '1 day'
        AND EXISTS (SELECT FROM dependencies WHERE on_id = arrays.id AND met_at IS NULL)"""
)


def old_arrays(tx: Connection) -> list[str]:
    """Arrays that jobs come after, and that nobody completes any more: what there is of them counts."""
    return [row[0] for row in tx.execute(_OLD_ARRAYS)]


_UNMET = text(
    """
    SELECT job_id::text, on_id::text FROM dependencies JOIN jobs ON jobs.id = job_id
    WHERE met_at IS NULL AND jobs.state IN ('pending', 'held')"""
)


def unmet(tx: Connection) -> Iterator[tuple[str, str]]:
    """Jobs that wait or are held, each with one that it still waits for."""
    return ((row[0], row[1]) for row in tx.execute(_UNMET))


_OF_JOB = text(
    """
    SELECT on_id AS id, kind, met_at, coalesce(jobs.state, CASE WHEN arrays.id IS NOT NULL THEN 'array' END) AS state,
        coalesce(jobs.name, arrays.name) AS name,
        arrays.size - (SELECT count(*) FROM jobs AS member WHERE member.array_id = arrays.id) AS missing
    FROM dependencies LEFT JOIN jobs ON jobs.id = on_id LEFT JOIN arrays ON arrays.id = on_id
    WHERE job_id = CAST(:id AS uuid) ORDER BY on_id, kind"""
)


def of_job(tx: Connection, job_id: str) -> list[dict[str, Any]]:
    """What a job comes after, ready for JSON; `state` is None of a job that the record has forgotten.

    `missing`: of an array, how many of its jobs the record does not have.
    """
    return [readable(row) for row in tx.execute(_OF_JOB, {"id": job_id})]
