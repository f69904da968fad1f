"""`cyxwiz db`: the schema of the record."""

from __future__ import annotations

import click

from cyxwiz_tasks.settings import settings


@click.group()
def db() -> None:
    """The database's schema. The database is that of CYXWIZ_DATABASE_URL, or of the stack that runs here."""


@db.command()
def upgrade() -> None:
    """Bring the schema up to date."""
    from db import migrate  # SQLAlchemy and Alembic take a moment: only for who needs them

    before = migrate.current(settings().database())
    migrate.upgrade(settings().database())
    now = migrate.current(settings().database())
    click.echo(f"at {now}, was at {before or 'nothing'}" if now != before else f"at {now}, nothing to do")


@db.command()
def current() -> None:
    """Show the schema's revision, and the newest one."""
    from db import migrate

    click.echo(f"at {migrate.current(settings().database()) or 'nothing'}, newest is {migrate.head()}")


@db.command()
def check() -> None:
    """Compare database, migrations and models; exit code 1 if they differ."""
    from db import migrate

    found = migrate.differences(settings().database())
    if found is not None:
        raise click.ClickException(found)
    click.echo("database, migrations and models agree")


@db.command()
@click.argument("message")
def revision(message: str) -> None:
    """For developers: write a migration with what the models have and the database has not."""
    from db import migrate

    click.echo(migrate.revise(settings().database(), message))
