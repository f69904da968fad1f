"""The schema: made once, checked against the models, and the same as what the enums say."""

from __future__ import annotations

import re
import shutil
import threading

import pytest
from alembic import command
from click.testing import CliRunner
from sqlalchemy import text

from cyxwiz_tasks.errors import InvalidSettings, ServerUnavailable
from cyxwiz_tasks.settings import settings
from cyxwiz_tasks.states import AttemptState, Cause, JobState
from db import migrate
from db.cli import db
from db.engine import make_engine


def test_an_empty_database_is_brought_up_to_date(empty_database_url):
    assert migrate.current(empty_database_url) is None
    assert "not up to date" in migrate.differences(empty_database_url)
    migrate.upgrade(empty_database_url)
    assert migrate.current(empty_database_url) == migrate.head()
    migrate.upgrade(empty_database_url)


def test_models_and_migrations_agree(database_url):
    assert migrate.differences(database_url) is None


def test_a_difference_is_named(database_url, engine):
    with engine.begin() as tx:
        tx.execute(text("ALTER TABLE jobs DROP COLUMN project"))
    assert "project" in migrate.differences(database_url)


def test_upgrades_at_once_are_safe(empty_database_url):
    problems = []

    def upgrade():
        try:
            migrate.upgrade(empty_database_url)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=upgrade) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert problems == []
    assert migrate.current(empty_database_url) == migrate.head()


def test_there_and_back_leaves_nothing(database_url, engine):
    with engine.connect() as connection:
        command.downgrade(migrate.configuration(connection), "base")
        connection.commit()
    with engine.connect() as connection:
        left = text(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S')"
        )
        assert connection.execute(left).scalars().all() == ["alembic_version"]
    migrate.upgrade(database_url)


@pytest.mark.parametrize(
    ("constraint", "members"),
    [
        ("ck_jobs_state", set(JobState)),
        ("ck_jobs_cause", set(Cause)),
        ("ck_attempts_state", set(AttemptState)),
        ("ck_attempts_cause", set(Cause)),
        ("ck_events_cause", set(Cause)),
    ],
)
def test_the_database_checks_exactly_the_members(engine, constraint, members):
    with engine.connect() as connection:
        sql = text("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = :name")
        assert set(re.findall(r"'(\w+)'", connection.scalar(sql, {"name": constraint}))) == members


def test_every_check_of_the_models_is_in_the_database(engine):
    from db.models import Base

    named = {
        str(c.name) for table in Base.metadata.tables.values() for c in table.constraints if str(c.name)[:2] == "ck"
    }
    with engine.connect() as connection:
        sql = text("SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace")
        assert set(connection.execute(sql).scalars()) == named


def test_a_new_migration_is_drafted_from_what_differs(database_url, engine, tmp_path, monkeypatch):
    shutil.copytree(migrate.MIGRATIONS, tmp_path / "migrations")
    monkeypatch.setattr(migrate, "MIGRATIONS", tmp_path / "migrations")
    with engine.begin() as tx:
        tx.execute(text("ALTER TABLE jobs DROP COLUMN project"))
    following = f"{int(migrate.head()) + 1:04}"
    draft = migrate.revise(database_url, "Add projects")
    assert draft == tmp_path / "migrations" / "versions" / f"v{following}_add_projects.py"
    assert "op.add_column('jobs', sa.Column('project', sa.Text(), nullable=False))" in draft.read_text()
    assert migrate.head() == following


def test_a_database_that_is_newer_than_this_installation_is_said_so(database_url, engine):
    with engine.begin() as tx:
        tx.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(InvalidSettings, match=r"schema 9999 .* newer .*install"):
        migrate.upgrade(database_url)
    with pytest.raises(InvalidSettings, match="schema 9999"):
        migrate.differences(database_url)
    assert migrate.current(database_url) == "9999"


def test_a_server_that_is_away_is_said_so(tmp_path):
    with pytest.raises(ServerUnavailable, match="CYXWIZ_DATABASE_URL"):
        migrate.upgrade(f"postgresql:///none?host={tmp_path}")


@pytest.fixture
def command_line(empty_database_url, monkeypatch, tmp_path):
    monkeypatch.setenv("CYXWIZ_DATABASE_URL", empty_database_url)
    monkeypatch.setenv("CYXWIZ_HOME", str(tmp_path))
    settings.cache_clear()
    yield lambda *arguments: CliRunner().invoke(db, arguments)
    settings.cache_clear()


def test_the_command_line(command_line):
    assert command_line("current").output == f"at nothing, newest is {migrate.head()}\n"
    failed = command_line("check")
    assert failed.exit_code == 1
    assert command_line("upgrade").output == f"at {migrate.head()}, was at nothing\n"
    assert command_line("upgrade").output == f"at {migrate.head()}, nothing to do\n"
    assert command_line("check").output == "database, migrations and models agree\n"


def test_an_upgrade_under_way_is_waited_for(empty_database_url):
    engine = make_engine(empty_database_url, "test")
    done = threading.Event()
    with engine.connect() as other:
        other.execute(text("SELECT pg_advisory_xact_lock(:lock_class, :lock_object)"), migrate.LOCK)
        thread = threading.Thread(target=lambda: (migrate.upgrade(empty_database_url), done.set()))
        thread.start()
        assert not done.wait(0.3)
        assert migrate.current(empty_database_url) is None
    thread.join(timeout=60)
    assert done.is_set()
    engine.dispose()
