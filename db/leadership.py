"""One scheduler leads at a time: an advisory lock says who, an epoch in a row fences whoever led before.

The lock lives on a connection of its own. If its process dies the kernel closes it; if its machine goes away the
server's keepalives notice; if the process hangs, or stops to ask `alive()`, the server ends the idle session. In each
case the next leader gets the lock, raises the epoch, and from then on `assert_current` refuses the old one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import psycopg
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from cyxwiz_tasks.errors import InvalidSettings, NotLeader, ServerUnavailable
from db.engine import first_line, is_transient
from db.migrate import refuse_other

#: of `pg_try_advisory_lock(class, object)`, this project's own
LOCK = {"lock_class": 0x63797877, "lock_object": 1}

# With the schema's revision: a leader of another one would misread the record.
_TRY = text("SELECT (SELECT version_num FROM alembic_version), pg_try_advisory_lock(:lock_class, :lock_object)")
_UNLOCK = text("SELECT pg_advisory_unlock(:lock_class, :lock_object)")
# Waits for transactions of the last leader that hold the row shared: after this none of them can commit any more.
_NEXT_EPOCH = text(
    """
    UPDATE leadership SET epoch = epoch + 1, holder = :holder, since = statement_timestamp()
    WHERE id = 1 RETURNING epoch"""
)
_WATCH = text(
    """
    SELECT set_config('idle_session_timeout', :silence, false), set_config('tcp_keepalives_idle', '2', false),
        set_config('tcp_keepalives_interval', '1', false), set_config('tcp_keepalives_count', '3', false)"""
)
_RAISE = text("UPDATE leadership SET epoch = greatest(epoch, :epoch) WHERE id = 1")
_SKIP_TOKENS = text("SELECT setval('attempt_token_seq', nextval('attempt_token_seq') + :count)")
#: more than any record that was promoted or restored can have lost
_SKIPPED_TOKENS = 1_000_000
_CURRENT = text("SELECT epoch FROM leadership WHERE id = 1 FOR SHARE")


class Leadership:
    """Held by one scheduler under `epoch`. Call `alive()` several times per `silence_seconds`."""

    def __init__(self, connection: Connection, holder: str, epoch: int) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self.holder = holder
        self.epoch = epoch

    def alive(self) -> bool:
        """Whether the lock is still held; False for good once its connection is gone."""
        with self._lock:
            if self._connection.closed:
                return False
            try:
                self._connection.scalar(text("SELECT 1"))
            except DBAPIError:
                self._drop()
                return False
            return True

    def release(self) -> None:
        """Give the lock back, so that a standby leads at once. Again, or after the connection is gone: nothing."""
        with self._lock:
            if not self._connection.closed:
                self._drop()

    def _drop(self) -> None:
        # The session ends, and the lock with it: nothing of it goes back to a pool.
        with suppress(DBAPIError):
            self._connection.invalidate()
        self._connection.close()


def try_lead(engine: Engine, holder: str, *, silence_seconds: float = 10.0) -> Leadership | None:
    """Leadership, or None while another scheduler has it.

    Raises ServerUnavailable if PostgreSQL cannot give it now, InvalidSettings if the database has no schema or that of
    another version.
    """
    try:
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    except DBAPIError as error:
        raise _unusable(error) from error
    try:
        revision, is_ours = connection.execute(_TRY, LOCK).one()
        refuse_other(revision)
        if is_ours:
            connection.execute(_WATCH, {"silence": f"{silence_seconds * 1000:.0f}"})
            return Leadership(connection, holder, connection.scalar(_NEXT_EPOCH, {"holder": holder}))
    except (DBAPIError, InvalidSettings) as error:
        # The session ends, and the lock with it.
        connection.invalidate()
        connection.close()
        if isinstance(error, InvalidSettings):
            raise
        if isinstance(error.orig, psycopg.errors.UndefinedTable):
            raise InvalidSettings(
                "CYXWIZ_DATABASE_URL: names a database without a schema: run `cyxwiz db upgrade` first"
            ) from error
        if is_transient(error):
            # A transaction of the last leader did not end in time, or the server went away: not yet.
            raise _unusable(error) from error
        raise
    connection.close()
    return None


def _unusable(error: DBAPIError) -> ServerUnavailable:
    return ServerUnavailable(
        f"PostgreSQL cannot be used ({first_line(error)}): see that it runs, and what CYXWIZ_DATABASE_URL says"
    )


def lead(
    engine: Engine,
    holder: str,
    stop: threading.Event,
    *,
    poll_seconds: float = 0.2,
    silence_seconds: float = 10.0,
    tell: Callable[[ServerUnavailable | None], None] = lambda _: None,
) -> Leadership | None:
    """Wait until this scheduler leads; None if `stop` was set first. A server that is away is waited for as well.

    `tell` hears after each try what hindered it: None is another scheduler that leads.
    """
    while not stop.is_set():
        try:
            leadership = try_lead(engine, holder, silence_seconds=silence_seconds)
            if leadership is not None:
                return leadership
            tell(None)
        except ServerUnavailable as error:
            tell(error)
        stop.wait(poll_seconds)
    return None


def assert_current(tx: Connection, epoch: int) -> None:
    """Fence the transaction: the shared lock makes the next leader wait until it has ended.

    Raises NotLeader if another one leads already.
    """
    current = tx.scalar(_CURRENT)
    if current != epoch:
        raise NotLeader(f"epoch {epoch} is over and {current} leads: stop and stand by", epoch=epoch, current=current)


def go_beyond(tx: Connection, epoch: int) -> None:
    """The record has lost what was given out already: no epoch up to `epoch` and no token comes a second time."""
    tx.execute(_RAISE, {"epoch": epoch})
    tx.execute(_SKIP_TOKENS, {"count": _SKIPPED_TOKENS})
