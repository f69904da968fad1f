"""One leader at a time, and nobody before it writes any more."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from broker.scheduler.failures import is_momentary, is_poison
from broker.scheduler.keeper import Keeper
from cyxwiz_tasks.errors import InvalidSettings, NotLeader, ServerUnavailable
from db.engine import make_engine
from db.fenced import fenced, fenced_connection
from db.leadership import assert_current, lead, try_lead
from db.migrate import head
from tests.conftest import database_on
from tests.integration.record import end_session_of_leader
from tests.integration.waiting import until


def test_one_leads_and_the_next_has_a_higher_epoch(engine):
    first = try_lead(engine, "a")
    assert first.alive()
    assert try_lead(engine, "b") is None
    first.release()
    first.release()
    assert not first.alive()
    # PostgreSQL ends the first session, and gives up its lock, a moment after it was told to.
    second = lead(engine, "b", threading.Event())
    assert second.epoch == first.epoch + 1
    with engine.begin() as tx:
        assert_current(tx, second.epoch)
        assert tx.scalar(text("SELECT holder FROM leadership")) == "b"
    second.release()


def test_an_old_epoch_is_refused(engine):
    first = try_lead(engine, "a")
    first.release()
    second = lead(engine, "b", threading.Event())
    with pytest.raises(NotLeader, match=f"epoch {first.epoch} is over"), engine.begin() as tx:
        assert_current(tx, first.epoch)
    second.release()


def test_a_transaction_of_an_old_epoch_does_not_begin(engine):
    first = try_lead(engine, "a")
    first.release()
    second = lead(engine, "b", threading.Event())
    with fenced_connection(engine) as connection:
        with fenced(connection, second.epoch) as tx:
            assert tx.scalar(text("SELECT holder FROM leadership")) == "b"
        with pytest.raises(NotLeader, match=f"epoch {first.epoch} is over"), fenced(connection, first.epoch):
            pytest.fail("it began")
    second.release()


def test_a_row_that_is_locked_for_too_long_is_the_moments_fault_and_no_messages(database_url, engine):
    leadership = try_lead(engine, "a")
    hasty = make_engine(database_url, "hasty", lock_timeout_seconds=0.1)
    with fenced_connection(hasty) as connection:
        with engine.begin() as tx:
            tx.execute(text("LOCK TABLE leadership"))
            with pytest.raises(DBAPIError, match="lock timeout") as raised, fenced(connection, leadership.epoch):
                pass
        assert (is_momentary(raised.value), is_poison(raised.value)) == (True, False)
        with fenced(connection, leadership.epoch) as tx:
            assert tx.scalar(text("SELECT 7")) == 7
    hasty.dispose()
    leadership.release()


def test_a_standby_waits_and_then_leads(engine):
    first, found = try_lead(engine, "a"), []
    standby = threading.Thread(target=lambda: found.append(lead(engine, "b", threading.Event(), poll_seconds=0.02)))
    standby.start()
    first.release()
    standby.join(timeout=10)
    assert found[0].epoch == first.epoch + 1
    found[0].release()


def test_a_standby_stops_waiting_when_told(engine):
    first, stop, found = try_lead(engine, "a"), threading.Event(), []
    standby = threading.Thread(target=lambda: found.append(lead(engine, "b", stop)))
    standby.start()
    stop.set()
    standby.join(timeout=10)
    assert found == [None]
    first.release()


def test_a_leader_whose_session_ended_knows_it(engine):
    first = try_lead(engine, "a")
    end_session_of_leader(engine)
    until(lambda: not first.alive())
    assert not first.alive()
    second = lead(engine, "b", threading.Event())
    assert second.epoch == first.epoch + 1
    second.release()
    first.release()


def test_a_leader_that_falls_silent_is_followed(engine):
    first = try_lead(engine, "a", silence_seconds=0.2)
    second = lead(engine, "b", threading.Event(), poll_seconds=0.02)
    assert second.epoch == first.epoch + 1
    assert not first.alive()
    second.release()


def test_the_next_leader_waits_for_a_transaction_of_the_last_one(engine):
    first, found = try_lead(engine, "a"), []
    with engine.begin() as tx:
        assert_current(tx, first.epoch)
        first.release()
        standby = threading.Thread(target=lambda: found.append(lead(engine, "b", threading.Event(), poll_seconds=0.02)))
        standby.start()
        waiting = text(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        observer = engine.execution_options(isolation_level="AUTOCOMMIT")
        with observer.connect() as connection:
            until(lambda: connection.scalar(waiting) == 1)
        assert found == []
    standby.join(timeout=10)
    assert found[0].epoch == first.epoch + 1
    found[0].release()


def test_a_stalled_transaction_of_the_last_leader_is_ended(database_url):
    engine = make_engine(database_url, "test", lock_timeout_seconds=0.3)
    first = try_lead(engine, "a")
    stalled = engine.connect()
    assert_current(stalled, first.epoch)
    first.release()
    second = lead(engine, "b", threading.Event(), poll_seconds=0.02)
    assert second.epoch == first.epoch + 1
    with pytest.raises(Exception, match=r"idle-in-transaction|closed|terminat"):
        stalled.execute(text("SELECT 1"))
    stalled.invalidate()
    stalled.close()
    second.release()
    engine.dispose()


def test_a_server_that_is_away_is_said_so(tmp_path):
    engine = make_engine(f"postgresql:///none?host={tmp_path}", "test")
    with pytest.raises(ServerUnavailable):
        try_lead(engine, "a")
    engine.dispose()


def test_a_server_that_gives_no_leadership_is_waited_for_and_said_why(postgres_url):
    stop, said = threading.Event(), []

    def tell(trouble):
        said.append(str(trouble))
        if len(said) == 2:
            stop.set()

    for url, reason in (
        (database_on(postgres_url, "no_such_database"), 'database "no_such_database" does not exist'),
        ("postgresql://somebody@no-such-host.invalid/record", "failed to resolve host 'no-such-host.invalid'"),
    ):
        engine = make_engine(url, "test")
        assert lead(engine, "a", stop, poll_seconds=0.02, tell=tell) is None
        assert said[0] == said[1]
        assert reason in said[0]
        assert "CYXWIZ_DATABASE_URL" in said[0]
        said.clear()
        stop.clear()
        engine.dispose()


def test_a_standby_hears_that_another_one_leads(engine):
    first, stop, said = try_lead(engine, "a"), threading.Event(), []

    def tell(trouble):
        said.append(trouble)
        stop.set()

    assert lead(engine, "b", stop, tell=tell) is None
    assert said == [None]
    first.release()


def set_revision(engine, revision):
    with engine.begin() as tx:
        tx.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


@pytest.mark.parametrize(
    ("revision", "reason"),
    [
        ("0001", rf"schema 0001 .* older than {head()}, .* `cyxwiz db upgrade`"),
        ("9999", "schema 9999 .* newer .* install"),
    ],
)
def test_the_schema_of_another_version_is_said_so_and_nobody_leads_on_it(engine, revision, reason):
    first = try_lead(engine, "a")
    set_revision(engine, revision)
    with pytest.raises(InvalidSettings, match=reason):
        lead(engine, "a standby", threading.Event())
    first.release()
    with pytest.raises(InvalidSettings, match=reason):
        lead(engine, "b", threading.Event())
    set_revision(engine, head())
    second = lead(engine, "b", threading.Event())
    assert second.epoch == first.epoch + 1
    second.release()


def test_the_leadership_is_kept_while_the_main_loop_waits_and_lost_once_it_stands_still(engine, monkeypatch):
    monkeypatch.setattr("broker.scheduler.keeper._EVERY_SECONDS", 0.05)
    monkeypatch.setattr("broker.scheduler.keeper.STALLED_SECONDS", 3.0)
    first = try_lead(engine, "a", silence_seconds=2.0)
    keeper = Keeper(first)
    began = time.monotonic()
    keeper.start()
    second = lead(engine, "b", threading.Event(), poll_seconds=0.02)
    assert time.monotonic() - began > 3.0
    assert second.epoch == first.epoch + 1
    keeper.stop()
    second.release()
    first.release()


def test_a_database_without_a_schema_is_said_so(empty_database_url):
    engine = make_engine(empty_database_url, "test")
    with pytest.raises(InvalidSettings, match="cyxwiz db upgrade"):
        lead(engine, "a", threading.Event())
    engine.dispose()
