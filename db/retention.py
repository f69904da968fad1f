"""Jobs that ended long ago leave the record, with their attempts, metrics and events."""

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
