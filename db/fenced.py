"""Transactions under an epoch: the first thing each of them does is to make sure that the epoch still leads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import psycopg
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from cyxwiz_tasks.errors import NotLeader

# One text of two statements is one round trip; a driver that begins transactions by itself takes two. The shared lock
# on the row makes the next leader wait for this transaction.
_BEGIN = "BEGIN; SELECT epoch FROM leadership WHERE id = 1 FOR SHARE"


@contextmanager
def fenced_connection(engine: Engine) -> Iterator[Connection]:
    """A connection for `fenced`, kept for a term: to take one out of the pool each time costs more than a query."""
    with engine.connect() as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT")


@contextmanager
def fenced(connection: Connection, epoch: int) -> Iterator[Connection]:
    """A transaction that commits only if nobody else leads before it ends.

    Raises NotLeader at once if somebody already does, and SQLAlchemy's errors, as any other statement.
    """
    with connection.begin():
        # In autocommit mode psycopg begins nothing by itself, and its commit() and rollback() end what was begun here.
        driver: Any = connection.connection.driver_connection
        try:
            with driver.cursor() as cursor:
                cursor.execute(_BEGIN, prepare=False)
                cursor.nextset()
                current = cursor.fetchone()[0]
        except psycopg.Error as error:
            # As the driver raises it, nobody could tell a row that is locked from a message that cannot be handled.
            raise DBAPIError.instance(_BEGIN, None, error, psycopg.Error) from error
        if current != epoch:
            refuse(epoch, current)
        yield connection


def refuse(epoch: int, current: int) -> NoReturn:
    """Raises NotLeader."""
    raise NotLeader(f"epoch {epoch} is over, epoch {current} leads: stop and stand by", epoch=epoch, current=current)


@contextmanager
def fences_itself(connection: Connection) -> Iterator[Connection]:
    """For a single statement that fences itself: it is a transaction of its own, with no round trips around it."""
    with connection.begin():
        yield connection
