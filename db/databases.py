"""Create and drop whole databases of a server, given its URL."""

from __future__ import annotations

import psycopg
from psycopg.sql import SQL, Composed, Identifier


def create_database(server_url: str, name: str, template: str | None = None) -> None:
    """Create database `name`, as a copy of `template` if one is given; nobody may be connected to the template."""
    copied = Identifier(template or "template0")
    _execute(server_url, SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), copied))


def drop_database(server_url: str, name: str) -> None:
    """Drop database `name` if it exists, ending the connections to it."""
    _execute(server_url, SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))


def driver_url(sqlalchemy_url: str) -> str:
    """The URL without SQLAlchemy's name of the driver, as psycopg.connect() takes it."""
    return sqlalchemy_url.replace("postgresql+psycopg:", "postgresql:", 1)


def _execute(server_url: str, statement: Composed) -> None:
    # Neither statement may run inside a transaction.
    with psycopg.connect(driver_url(server_url), autocommit=True) as connection:
        connection.execute(statement)
