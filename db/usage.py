"""How much of the cluster owners and projects had: sums over attempts, for a new leader."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

#: attempts that ended longer ago, in mean lives, count for less than a thousandth
_MEAN_LIVES = 7

# The mean of what was held, weighed by exp(-age / mean life). The integral of that weight over an attempt is the
# difference of two exponentials. A share is the largest of an attempt's shares of what all nodes have together now:
# what they had then is not recorded. GPUs count for a job that has them for itself. Those under way are found by their
# states: the index on `ended_at` remembers for ever that a page once held an attempt without an end, as each has.
_DECAYED = text(
    """
    WITH places AS (
        SELECT job_id, gpus, gpu_memory_bytes, cpus, ram_bytes, assigned_at, ended_at, state FROM attempts
        UNION ALL
        SELECT job_id, members.gpus, members.gpu_memory_bytes, members.cpus, members.ram_bytes, assigned_at,
            attempts.ended_at, attempts.state
        FROM gang_members AS members JOIN attempts ON attempts.token = lead WHERE rank > 0
    ), held AS (
        SELECT job_id, cardinality(gpus) AS gpus, gpu_memory_bytes, cpus, ram_bytes,
            exp(-least(extract(epoch FROM statement_timestamp() - coalesce(ended_at, statement_timestamp())
                )::float8 / :mean_life, 700))
            - exp(-least(extract(epoch FROM statement_timestamp() - assigned_at)::float8 / :mean_life, 700)) AS weight
        FROM places
        WHERE state IN ('assigned', 'running') OR ended_at > statement_timestamp() - make_interval(secs => :oldest)
    )
    SELECT project, owner, sum(greatest(0, weight) * greatest(1 / :slots ::float8,
        CASE WHEN resources @> '{"shared": true}' THEN 0 ELSE held.gpus END / :gpus ::float8,
        gpu_memory_bytes / :gpu_memory_bytes ::float8, cpus / :cpus ::float8, ram_bytes / :ram_bytes ::float8))::float8
    FROM held JOIN jobs ON jobs.id = held.job_id
    GROUP BY project, owner"""
)


def decayed(tx: Connection, totals: Sequence[int], mean_life_seconds: float) -> list[tuple[str, str, float]]:
    """Project, owner, and the mean share of the cluster that they held, recent moments counting most.

    `totals` are slots, GPUs, bytes of GPU memory, cores and bytes of memory of all nodes together.
    """
    names = ("slots", "gpus", "gpu_memory_bytes", "cpus", "ram_bytes")
    # Of what there is nothing nobody had a share; without a node, nobody had any.
    values = {name: total or float("inf") for name, total in zip(names, totals, strict=True)}
    values |= {"mean_life": mean_life_seconds, "oldest": _MEAN_LIVES * mean_life_seconds}
    return [(project, owner, past) for project, owner, past in tx.execute(_DECAYED, values)]
