"""Transactions that are run again, and those that are not."""

from __future__ import annotations

import socket
import threading

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from cyxwiz_tasks.errors import InvalidSettings, ServerUnavailable
from db.engine import make_engine, with_retries

END_MYSELF = text("SELECT pg_terminate_backend(pg_backend_pid())")


def test_a_value_comes_back_and_the_work_is_committed(engine):
    assert with_retries(engine, lambda tx: tx.execute(text("UPDATE leadership SET holder = 'x'")).rowcount) == 1
    assert with_retries(engine, lambda tx: tx.scalar(text("SELECT holder FROM leadership"))) == "x"


def test_a_lost_connection_is_replaced(engine):
    runs = []

    def work(tx):
        runs.append(1)
        if len(runs) < 3:
            tx.execute(END_MYSELF)
        return tx.scalar(text("SELECT 7"))

    assert with_retries(engine, work) == 7
    assert len(runs) == 3


def test_a_server_that_takes_connections_and_never_answers_is_unavailable():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"postgresql://postgres@127.0.0.1:{mute.getsockname()[1]}/postgres"
        engine = make_engine(url, "test", connect_timeout_seconds=2)  # libpq knows no shorter one
        with pytest.raises(ServerUnavailable, match="timeout"):
            with_retries(engine, lambda tx: tx.scalar(text("SELECT 7")), patience_seconds=0.1)
        engine.dispose()


def test_a_pool_of_dead_connections_is_replaced(engine):
    with engine.connect() as one, engine.connect() as two:
        pids = [c.scalar(text("SELECT pg_backend_pid()")) for c in (one, two)]
    killer = make_engine(str(engine.url.render_as_string(hide_password=False)), "killer")
    with killer.begin() as tx:
        for pid in pids:
            tx.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    killer.dispose()
    assert with_retries(engine, lambda tx: tx.scalar(text("SELECT 7"))) == 7


def test_both_sides_of_a_deadlock_end_well(engine):
    with engine.begin() as tx:
        tx.execute(text("CREATE TABLE pair (id int PRIMARY KEY, n int DEFAULT 0)"))
        tx.execute(text("INSERT INTO pair VALUES (1), (2)"))
    barrier = threading.Barrier(2)
    runs = []

    def work(order):
        def cross(tx):
            runs.append(order)
            tx.execute(text("UPDATE pair SET n = n + 1 WHERE id = :id"), {"id": order[0]})
            if runs.count(order) == 1:
                barrier.wait(timeout=10)
            tx.execute(text("UPDATE pair SET n = n + 1 WHERE id = :id"), {"id": order[1]})

        with_retries(engine, cross)

    threads = [threading.Thread(target=work, args=(order,)) for order in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    with engine.begin() as tx:
        assert tx.execute(text("SELECT n FROM pair")).scalars().all() == [2, 2]
    assert len(runs) == 3


def test_mistakes_are_not_tried_again(engine):
    runs = []

    def work(tx):
        runs.append(1)
        tx.execute(text("SELECT 1 / 0"))

    with pytest.raises(DBAPIError, match="division by zero"):
        with_retries(engine, work)
    assert len(runs) == 1


def test_a_server_that_stays_away_is_said_so(tmp_path):
    engine = make_engine(f"postgresql:///none?host={tmp_path}", "test")
    with pytest.raises(ServerUnavailable, match=r"did not answer for 0\.2 s .*CYXWIZ_DATABASE_URL"):
        with_retries(engine, lambda tx: None, patience_seconds=0.2)
    engine.dispose()


@pytest.mark.parametrize("url", ["", "sqlite://", "nonsense", "postgresql://host:port/x"])
def test_other_databases_are_refused(url):
    with pytest.raises(InvalidSettings, match="CYXWIZ_DATABASE_URL"):
        make_engine(url, "test")


def test_sessions_have_a_name_and_limits(engine):
    with engine.connect() as connection:
        shown = {
            name: connection.scalar(text(f"SHOW {name}"))
            for name in ("application_name", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        }
    assert shown == {
        "application_name": "test",
        "statement_timeout": "30s",
        "lock_timeout": "10s",
        "idle_in_transaction_session_timeout": "10s",
    }
