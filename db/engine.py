"""Connections to PostgreSQL, and transactions that are run again when the server asked for it or went away."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

import psycopg
from sqlalchemy import Connection, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from cyxwiz_tasks.errors import InvalidSettings, ServerUnavailable

T = TypeVar("T")

#: classes of SQLSTATE that are the server's trouble and not the statement's: connection, rolled back (deadlock,
#: serialization), out of memory, disk or connections, shutting down or starting, an error of the system below it
_SERVER_CLASSES = ("08", "40", "53", "57", "58")
#: lock not had in time; a standby that is not a primary yet; a session that was ended for its silence
_SERVER_STATES = frozenset({"55P03", "25006", "25P03"})
#: only this transaction failed: serialization failure, deadlock, lock or statement that took too long
_CONFLICTS = frozenset({"40001", "40P01", "55P03", "57014"})
RETRY_BASE_SECONDS = 0.05
RETRY_CAP_SECONDS = 1.0

# Statements are prepared, and their plans kept, when the tables may still be empty. For an empty table a sequential
# scan is the cheapest plan, and a kept one stays while the table grows to millions. Every statement here finds its rows
# by key, so the other ways are made expensive, and jit must not take that cost for a reason to compile. Generic plans
# cost no planning (0.3 ms) and cannot take `state = ANY(:sources)` for an invitation to scan all that waits.
PLANNER = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}


def make_engine(
    url: str,
    application_name: str,
    *,
    pool_size: int = 5,
    statement_timeout_seconds: float = 30.0,
    lock_timeout_seconds: float = 10.0,
    connect_timeout_seconds: int = 5,
    options: dict[str, str] | None = None,
) -> Engine:
    """An engine for `postgresql://...`; `options` are more server settings for its sessions.

    A session that stalls inside a transaction is ended by the server, so that a stopped leader cannot block the next.
    Raises InvalidSettings if the URL is none of PostgreSQL.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        raise InvalidSettings("CYXWIZ_DATABASE_URL: is not a URL: write postgresql://user@host/database") from None
    if parsed.get_backend_name() not in ("postgresql", "postgres"):
        raise InvalidSettings("CYXWIZ_DATABASE_URL: is not one of PostgreSQL: write postgresql://user@host/database")
    session = PLANNER | {
        "statement_timeout": f"{statement_timeout_seconds * 1000:.0f}",
        "lock_timeout": f"{lock_timeout_seconds * 1000:.0f}",
        "idle_in_transaction_session_timeout": f"{lock_timeout_seconds * 1000:.0f}",
    }
    session |= options or {}
    return create_engine(
        parsed.set(drivername="postgresql+psycopg"),
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=10.0,
        # No ping before each use: it would be a round trip per transaction, and with_retries meets a dead connection.
        pool_pre_ping=False,
        connect_args={
            "application_name": application_name,
            "connect_timeout": connect_timeout_seconds,
            "prepare_threshold": 0,
            "keepalives_idle": 10,
            "keepalives_interval": 3,
            "keepalives_count": 3,
            # What was sent and is not acknowledged would be sent again for a quarter of an hour.
            "tcp_user_timeout": 10_000,
            "options": " ".join(f"-c {name}={value}" for name, value in session.items()),
        },
    )


def with_retries(engine: Engine, function: Callable[[Connection], T], *, patience_seconds: float = 15.0) -> T:
    """The value of `function(tx)`, run in a transaction of its own that is then committed.

    After a deadlock, a serialization failure, a lock that was not had in time, or a lost connection, the whole
    transaction is run again, with growing pauses of random length. If the connection broke during the commit, the first
    run may have been committed: `function` must find its own work and go on from there.
    Raises ServerUnavailable when `patience_seconds` are over.
    """
    deadline = time.monotonic() + patience_seconds
    ceiling = RETRY_BASE_SECONDS
    while True:
        try:
            with engine.begin() as tx:
                return function(tx)
        except (DBAPIError, PoolTimeout) as error:
            if isinstance(error, DBAPIError) and not is_transient(error):
                raise
            pause = random.uniform(0, ceiling)  # noqa: S311 - no secret
            if time.monotonic() + pause > deadline:
                raise ServerUnavailable(
                    f"PostgreSQL did not answer for {patience_seconds:g} s ({first_line(error)}): "
                    "see that it runs, and what CYXWIZ_DATABASE_URL says"
                ) from error
            time.sleep(pause)
            ceiling = min(2 * ceiling, RETRY_CAP_SECONDS)


def is_transient(error: DBAPIError) -> bool:
    """Whether the same transaction may pass if it is run again, sooner or later, on a new connection."""
    sqlstate = _sqlstate(error)
    if sqlstate is None:
        # Without a code the error is not the server's word: there is no connection (any more).
        return error.connection_invalidated or isinstance(error.orig, psycopg.OperationalError)
    return sqlstate.startswith(_SERVER_CLASSES) or sqlstate in _SERVER_STATES or error.connection_invalidated


def is_conflict(error: DBAPIError) -> bool:
    """Whether the same transaction may pass at once, on the same connection."""
    return _sqlstate(error) in _CONFLICTS and not error.connection_invalidated


def is_beyond_limits(error: DBAPIError) -> bool:
    """Whether a value is too large for PostgreSQL, such as a name of thousands of characters for an index."""
    return (_sqlstate(error) or "").startswith("54")


def first_line(error: Exception) -> str:
    """What the server or its driver said."""
    text = str(getattr(error, "orig", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)
