"""The schema's versions: bring a database up to date, and see where it stands.

Alembic's configuration is made here in code, so an installed wheel needs no alembic.ini.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from cyxwiz_tasks.errors import InvalidSettings, ServerUnavailable
from db.engine import first_line, make_engine

MIGRATIONS = Path(__file__).parent / "migrations"
#: of `pg_advisory_lock(class, object)`: one upgrade at a time
LOCK = {"lock_class": 0x63797877, "lock_object": 2}
#: how long an upgrade waits for another one that runs
WAIT_SECONDS = 300
#: a statement that waits longer than this for a table's lock gives up, instead of holding up everybody behind it
LOCK_TIMEOUT_SECONDS = 5
STATEMENT_TIMEOUT_SECONDS = 600
OLDEST_SERVER = 15


def configuration(connection: Connection | None = None) -> Config:
    """Alembic's configuration; `connection` is what env.py runs on. Its output goes nowhere."""
    config = Config(stdout=io.StringIO())
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("file_template", "v%%(rev)s_%%(slug)s")
    config.attributes["connection"] = connection
    return config


def upgrade(url: str, revision: str = "head") -> None:
    """Bring a database up to date. Several at once are safe: one does it, the others wait and find it done.

    Raises ServerUnavailable if there is no such server, InvalidSettings if it is older than PostgreSQL 15, or if the
    schema is newer than this installation.
    """
    with _connected(url) as connection:
        version: int = connection.execute(text("SELECT current_setting('server_version_num')::int")).scalar_one()
        if version // 10000 < OLDEST_SERVER:
            raise InvalidSettings(
                f"CYXWIZ_DATABASE_URL: names a PostgreSQL {version // 10000}: use PostgreSQL {OLDEST_SERVER} or newer"
            )
        _set_lock_timeout(connection, WAIT_SECONDS)
        connection.execute(text("SELECT pg_advisory_lock(:lock_class, :lock_object)"), LOCK)
        _set_lock_timeout(connection, LOCK_TIMEOUT_SECONDS)
        _refuse_newer(_revision_of(connection))
        connection.commit()
        # Closing the connection gives the lock back, however this ends.
        command.upgrade(configuration(connection), revision)


def current(url: str) -> str | None:
    """The revision that a database is at; None if it has no schema of ours."""
    with _connected(url) as connection:
        return _revision_of(connection)


def head() -> str:
    """The newest revision."""
    return ScriptDirectory.from_config(configuration()).get_current_head() or ""


def refuse_other(found: str | None) -> None:
    """Raises InvalidSettings, with what to do, unless a database at revision `found` is what this version works on."""
    if found == _needed():
        return
    _refuse_newer(found)
    raise InvalidSettings(
        f"CYXWIZ_DATABASE_URL: schema {found or 'none'} of this database is older than {_needed()}, which this version "
        "needs: run `cyxwiz db upgrade` first"
    )


@cache
def _needed() -> str:
    return head()


def differences(url: str) -> str | None:
    """What a database or the migrations lack, compared with `db/models.py`; None if all three agree.

    Raises InvalidSettings if the schema is newer than this installation.
    """
    with _connected(url) as connection:
        _refuse_newer(_revision_of(connection))
        connection.commit()
        try:
            command.check(configuration(connection))
        except CommandError as error:
            return str(error)
        return None


def revise(url: str, message: str) -> Path:
    """Write a new migration with what Alembic finds to differ, for a developer to finish; its file."""
    with _connected(url) as connection:
        number = f"{int(head()) + 1:04}"
        script = command.revision(configuration(connection), message, autogenerate=True, rev_id=number)
    if script is None or isinstance(script, list):
        raise InvalidSettings("the migrations have several heads: merge them first")
    return Path(script.path)


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    engine = make_engine(
        url,
        "cyxwiz db",
        statement_timeout_seconds=STATEMENT_TIMEOUT_SECONDS,
        lock_timeout_seconds=LOCK_TIMEOUT_SECONDS,
        # A migration may take its time between two statements.
        options={"idle_in_transaction_session_timeout": "0"},
    )
    try:
        try:
            connection = engine.connect()
        except OperationalError as error:
            raise ServerUnavailable(
                f"PostgreSQL does not answer ({first_line(error)}): see that it runs, and what CYXWIZ_DATABASE_URL says"
            ) from error
        with connection:
            yield connection
    finally:
        engine.dispose()


def _revision_of(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _refuse_newer(found: str | None) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(configuration()).walk_revisions()}
    if found is not None and found not in known:
        raise InvalidSettings(
            f"CYXWIZ_DATABASE_URL: schema {found} of this database is newer than {head()}, the newest that this "
            "installation knows: install the version that made it, or a later one"
        )


def _set_lock_timeout(connection: Connection, seconds: int) -> None:
    connection.execute(text("SELECT set_config('lock_timeout', :value, false)"), {"value": f"{seconds}s"})
