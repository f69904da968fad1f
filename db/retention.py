"""What is long over leaves the record: jobs, with their attempts, metrics and events, and then their nodes."""

from __future__ import annotations

from sqlalchemy import Connection, text

# Attempts and metrics go by their foreign keys. Events have none: it would cost every move of a job a look-up.
_PRUNE = text(
    """
    WITH old AS (
        SELECT id FROM jobs WHERE ended_at < statement_timestamp() - make_interval(secs => :seconds)
        ORDER BY ended_at LIMIT :limit
    ), forgotten AS (
        DELETE FROM events USING old WHERE events.job_id = old.id
    )
    DELETE FROM jobs USING old WHERE jobs.id = old.id"""
)


def prune(tx: Connection, older_than_seconds: float, limit: int) -> int:
    """Remove up to `limit` jobs that ended longer ago than that, by the database's clock; how many were removed."""
    return tx.execute(_PRUNE, {"seconds": older_than_seconds, "limit": limit}).rowcount


_PRUNE_ARRAYS = text(
    """
    DELETE FROM arrays WHERE accepted_at < statement_timestamp() - make_interval(secs => :seconds)
        AND NOT EXISTS (SELECT FROM jobs WHERE array_id = arrays.id)"""
)


def prune_arrays(tx: Connection, older_than_seconds: float) -> int:
    """Remove arrays that are older than that and have no jobs any more; how many were removed."""
    return tx.execute(_PRUNE_ARRAYS, {"seconds": older_than_seconds}).rowcount


_PRUNE_NODE_EVENTS = text(
    """
    DELETE FROM events WHERE seq IN (
        SELECT seq FROM events WHERE job_id IS NULL AND at < statement_timestamp() - make_interval(secs => :seconds)
        LIMIT :limit)"""
)


def prune_node_events(tx: Connection, older_than_seconds: float, limit: int) -> int:
    """Remove up to `limit` events of nodes that are older than that; how many were removed. Reads all of them."""
    return tx.execute(_PRUNE_NODE_EVENTS, {"seconds": older_than_seconds, "limit": limit}).rowcount


# One at a time: no index leads from a node to its attempts, so all of them are read to see that it has none, and once
# more to keep the foreign key. A person's wish that it gets no work must outlast its absence.
_PRUNE_NODE = text(
    """
    DELETE FROM nodes WHERE id = (
        SELECT id FROM nodes AS gone WHERE state IN ('lost', 'left') AND cordon IS DISTINCT FROM 'draining'
            AND last_seen_at < statement_timestamp() - make_interval(secs => :seconds)
            AND NOT EXISTS (SELECT FROM attempts WHERE node_id = gone.id)
        LIMIT 1)"""
)


def prune_node(tx: Connection, older_than_seconds: float) -> bool:
    """Remove a node that has been gone for longer than that and of which no attempt is kept; whether there was one."""
    return bool(tx.execute(_PRUNE_NODE, {"seconds": older_than_seconds}).rowcount)
