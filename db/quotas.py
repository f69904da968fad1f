"""What projects own of the cluster, lend and borrow."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, text

_ALL = text(
    "SELECT project, weight, gpus, cpus, lend_gpus, lend_cpus, borrow_gpus, borrow_cpus FROM quotas ORDER BY project"
)


def of_projects(tx: Connection) -> dict[str, dict[str, Any]]:
    """By project, its quota's columns."""
    rows = (dict(row._mapping) for row in tx.execute(_ALL))
    return {row.pop("project"): row for row in rows}


_SET = text(
    """
    INSERT INTO quotas (project, weight, gpus, cpus, lend_gpus, lend_cpus, borrow_gpus, borrow_cpus)
    VALUES (:project, :weight, :gpus, :cpus, :lend_gpus, :lend_cpus, :borrow_gpus, :borrow_cpus)
    ON CONFLICT (project) DO UPDATE SET weight = :weight, gpus = :gpus, cpus = :cpus, lend_gpus = :lend_gpus,
        lend_cpus = :lend_cpus, borrow_gpus = :borrow_gpus, borrow_cpus = :borrow_cpus"""
)


def set_quota(tx: Connection, project: str, quota: dict[str, Any]) -> None:
    """Set all of a project's quota; `quota` has each of the columns."""
    tx.execute(_SET, {"project": project, **quota})


_REMOVE = text("DELETE FROM quotas WHERE project = :project")


def remove(tx: Connection, project: str) -> bool:
    """Let a project have no quota; whether it had one."""
    return bool(tx.execute(_REMOVE, {"project": project}).rowcount)


_PREEMPTED = text(
    """
    SELECT job_id::text, count(*) FROM attempts
    WHERE job_id = ANY(CAST(:ids AS uuid[])) AND state = 'preempted' GROUP BY job_id"""
)


def times_preempted(tx: Connection, job_ids: list[str]) -> dict[str, int]:
    """How many attempts of each of these jobs gave their place back; a job without any has no entry."""
    return {row[0]: row[1] for row in tx.execute(_PREEMPTED, {"ids": job_ids})} if job_ids else {}
