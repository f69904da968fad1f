"""Schedules: jobs that are sent again and again."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from db.rows import clean, readable


class Due(NamedTuple):
    """A schedule whose moment has come. Times have a timezone."""

    name: str
    id: str
    cron: str
    timezone: str
    catch_up: bool
    envelope: str
    #: the moment that has come
    next_at: datetime
    #: by the database's clock
    now: datetime


_ADD = text(
    """
    INSERT INTO schedules (name, id, owner, cron, timezone, catch_up, envelope, next_at)
    VALUES (:name, CAST(:id AS uuid), :owner, :cron, :timezone, :catch_up, :envelope, :next_at)
    ON CONFLICT DO NOTHING"""
)


def add(
    tx: Connection,
    *,
    name: str,
    id: str,
    owner: str,
    cron: str,
    timezone: str,
    catch_up: bool,
    envelope: str,
    next_at: datetime,
) -> bool:
    """Keep a new schedule. False: there is one of this name."""
    values = {"name": clean(name), "id": id, "owner": clean(owner), "cron": cron, "timezone": timezone}
    values |= {"catch_up": catch_up, "envelope": envelope, "next_at": next_at}
    return bool(tx.execute(_ADD, values).rowcount)


def remove(tx: Connection, name: str) -> bool:
    """Forget a schedule. False: there is none of this name."""
    return bool(tx.execute(text("DELETE FROM schedules WHERE name = :name"), {"name": clean(name)}).rowcount)


_NOW = text("SELECT statement_timestamp()")


def now(tx: Connection) -> datetime:
    """The time by the database's clock, by which schedules are due."""
    found: datetime = tx.execute(_NOW).scalar_one()
    return found


_DUE = text(
    """
    SELECT name, id::text, cron, timezone, catch_up, envelope, next_at, statement_timestamp() AS now
    FROM schedules WHERE next_at <= statement_timestamp() ORDER BY next_at, name LIMIT :limit FOR UPDATE"""
)


def due(tx: Connection, limit: int = 100) -> list[Due]:
    """Schedules whose moment has come."""
    return [Due(*row) for row in tx.execute(_DUE, {"limit": limit})]


_MOVE_ON = text(
    """
    UPDATE schedules SET next_at = :next_at, last_at = CASE WHEN :fired THEN next_at ELSE last_at END,
        last_job_id = coalesce(CAST(:job_id AS uuid), last_job_id)
    WHERE name = :name"""
)


def move_on(tx: Connection, name: str, next_at: datetime, job_id: str | None) -> None:
    """The moment of a schedule is over: it was met by a job, or skipped."""
    tx.execute(_MOVE_ON, {"name": name, "next_at": next_at, "job_id": job_id, "fired": job_id is not None})


_NEXT = text("SELECT extract(epoch FROM min(next_at) - statement_timestamp())::float8 FROM schedules")


def next_in_seconds(tx: Connection) -> float | None:
    """How long it is until the next schedule is due; None: there is none."""
    seconds: float | None = tx.execute(_NEXT).scalar()
    return seconds


_FIND = text(
    """
    SELECT name, id, owner, cron, timezone, catch_up, created_at, next_at, last_at, last_job_id FROM schedules
    WHERE CAST(:name AS text) IS NULL OR name = :name ORDER BY name"""
)


def find(tx: Connection, name: str | None = None) -> list[dict[str, Any]]:
    """All schedules by their names, or the one with this name, ready for JSON."""
    return [readable(row) for row in tx.execute(_FIND, {"name": name})]
