"""The history: events of one job or of one node, in order."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, text

from db.reports import known_id
from db.rows import readable

_COLUMNS = """
    SELECT events.seq, job_id, node_id, nodes.name AS node, attempt, token, epoch, from_state, to_state, cause,
        at, actor, detail
    FROM events LEFT JOIN nodes ON nodes.id = node_id"""

_OF_JOB = text(_COLUMNS + " WHERE job_id = CAST(:id AS uuid) AND seq > :after ORDER BY seq LIMIT :limit")
_OF_NODE = text(
    _COLUMNS + " WHERE node_id = CAST(:id AS uuid) AND job_id IS NULL AND seq > :after ORDER BY seq LIMIT :limit"
)


def of_job(tx: Connection, job_id: str, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
    """A job's events after sequence number `after`, ready for JSON. One without `to_state` is a note, not a move."""
    if known_id(job_id) is None:
        return []
    return [readable(row) for row in tx.execute(_OF_JOB, {"id": job_id, "after": after, "limit": limit})]


def of_node(tx: Connection, node_id: str, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
    """A node's own events (not those of its attempts) after sequence number `after`, ready for JSON."""
    if known_id(node_id) is None:
        return []
    return [readable(row) for row in tx.execute(_OF_NODE, {"id": node_id, "after": after, "limit": limit})]
