"""Servers that restart, are full, slow or read-only: nothing is lost, the scheduler lives, and who asks is answered."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import threading
import time
from contextlib import contextmanager

import psutil
import psycopg
import pytest
import redis
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from broker.embedded import EmbeddedRedis
from broker.scheduler import accepting, reports
from broker.scheduler.duties.readings import Readings
from cyxwiz_tasks.errors import ServerUnavailable
from db.embedded import EmbeddedPostgres
from db.engine import make_engine
from db.migrate import upgrade
from tests.integration.control_plane import ControlPlane
from tests.integration.waiting import until


@pytest.fixture
def own_redis(server_folder, database_url, engine):
    """A plane with a Redis of its own, `plane.server`."""
    with EmbeddedRedis(server_folder / "redis") as server:
        plane = ControlPlane(server.url, database_url, engine)
        plane.server = server
        yield plane
        plane.close()
        assert plane.broken_rules() == {}


@pytest.fixture
def own_postgres(server_folder, broker_url):
    """A plane with a PostgreSQL of its own, `plane.server`."""
    with EmbeddedPostgres(server_folder / "postgres", settings={"max_connections": "20"}) as server:
        upgrade(server.url)
        engine = make_engine(server.url, "test")
        plane = ControlPlane(broker_url, server.url, engine)
        plane.server = server
        yield plane
        plane.close()
        engine.dispose()
        assert plane.broken_rules() == {}
        engine.dispose()


def epoch(plane):
    return plane.client.status()["leader"]["epoch"]


def started(plane, node):
    """The next attempt of a node, running in the record: nobody publishes it again."""
    attempt, _ = node.take()
    node.start(attempt)
    plane.wait_for(attempt.job, "running")
    return attempt


# Redis --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False])
def test_redis_restarts_with_and_without_its_file(own_redis, kept):
    plane = own_redis
    with plane.scheduler():
        node = plane.node()
        waiting, assigned = plane.submit(1, resources={"gpus": 1}), plane.submit(2)
        running = plane.submit(3)
        first, second = node.take()[0], node.take()[0]
        attempts = {first.job: first, second.job: second}
        node.start(attempts[running])
        plane.wait_for(running, "running")
        plane.server.stop()
        if not kept:
            shutil.rmtree(plane.server.folder / "appendonlydir")
        plane.server.start()
        again, _ = node.take()
        assert again.token == attempts[assigned].token, "published again"
        for attempt in (attempts[running], again):
            assert node.end(attempt).committed
        assert plane.node("big", gpus=1).run().job == waiting
        assert epoch(plane) == 1


def test_a_full_redis_refuses_submissions_clearly_and_costs_nothing(own_redis):
    plane = own_redis
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        attempt = started(plane, node)
        plane.redis.config_set("maxmemory", "1mb")
        began = time.monotonic()
        with pytest.raises(ServerUnavailable, match="full"):
            plane.submit()
        assert time.monotonic() - began < 10
        time.sleep(plane.settings.lease_seconds + 1.0)  # the fault lasts longer than a lease
        plane.redis.config_set("maxmemory", "0")
        assert node.end(attempt).committed
        assert plane.job(job_id)["attempts"] == 1
        other = plane.submit()
        assert node.run().job == other
        assert epoch(plane) == 1


def test_a_redis_that_may_not_write_is_waited_for(own_redis):
    plane = own_redis
    with plane.scheduler():
        node = plane.node()
        plane.redis.replicaof("127.0.0.1", "1")
        with pytest.raises(ServerUnavailable, match="write"):
            plane.submit()
        plane.redis.replicaof("NO", "ONE")
        job_id = plane.submit()
        assert node.run().job == job_id


def test_a_redis_of_two_seconds_a_call_keeps_its_leader_and_its_nodes(own_redis):
    plane, over = own_redis, threading.Event()

    def pause():
        with redis.Redis.from_url(plane.broker_url) as client:
            while not over.is_set():
                client.client_pause(1900, all=True)
                over.wait(2.0)

    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        attempt, _ = node.take()
        slow = threading.Thread(target=pause)
        slow.start()
        try:
            other = plane.submit()
            assert node.end(attempt).committed
            assert node.run().job == other
        finally:
            over.set()
            slow.join()
        assert plane.job(job_id)["attempts"] == 1
        assert epoch(plane) == 1


def test_who_waits_for_a_job_waits_for_a_redis_that_restarts(own_redis, caplog):
    plane, found = own_redis, {}
    with plane.scheduler():
        node = plane.node()
        handle = plane.client.submit(plane.signature())
        attempt = node.take()[0]
        node.start(attempt)
        waits = {
            "result": lambda: handle.result(timeout=20),
            "progress": lambda: [update.kind for update in handle.progress()][-1],
        }
        threads = [threading.Thread(target=lambda n=n, w=w: found.update({n: w()})) for n, w in waits.items()]
        for thread in threads:
            thread.start()
        plane.server.stop()
        with pytest.raises(TimeoutError, match=r"known to have ended.*does not answer"):
            handle.result(timeout=0.2)
        until(lambda: "waiting for it" in caplog.text)
        plane.server.start()
        assert node.end(attempt, result=7).committed
        for thread in threads:
            thread.join(15)
        assert found == {"result": 7, "progress": "end"}


# PostgreSQL ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL], ids=["fast", "immediate", "killed"])
def test_postgres_restarts(own_postgres, number):
    plane = own_postgres
    with plane.scheduler():
        node = plane.node()
        running, waiting = plane.submit(1), plane.submit(2, resources={"gpus": 1})
        attempt = started(plane, node)
        with plane.engine.connect() as tx:
            backend = tx.scalar(text("SELECT pg_backend_pid()"))
        postmaster = psutil.Process(backend).parent()
        os.kill(postmaster.pid, number)
        plane.engine.dispose()
        postmaster.wait(10)
        handles = plane.client.submit_many([plane.signature(3)], wait=False)
        with pytest.raises(TimeoutError):
            plane.client.get(running).result(timeout=0.1)
        back = threading.Timer(0.5, plane.server.start)
        back.start()
        assert plane.client.job(running)["state"] == "running"
        back.join()
        began = time.monotonic()
        assert node.end(attempt, result=1).committed
        assert node.run().job == handles[0].id
        assert time.monotonic() - began < 15.0
        assert plane.job(running)["attempts"] == 1
        assert plane.node("big", gpus=1).run().job == waiting


def test_a_postgres_without_a_connection_left_is_waited_for(own_postgres):
    plane = own_postgres
    with plane.scheduler():
        node = plane.node()
        with all_connections(plane) as held:
            with plane.engine.begin() as tx:
                sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :name"
                assert tx.execute(text(sql), {"name": "cyxwiz-scheduler"}).rowcount
            held.fill()
            handle = plane.client.submit_many([plane.signature(1)], wait=False)[0]
            with pytest.raises(AssertionError):
                node.take(timeout=1)
        assert node.run().job == handle.id


@contextmanager
def all_connections(plane):
    """All connections that the server has left, once `fill()` was called."""

    class Held(list):
        def fill(self):
            # The scheduler may be quicker and have some back by then: they are taken from it again.
            sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cyxwiz-scheduler'"
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                try:
                    self.append(psycopg.connect(plane.server.dsn, autocommit=True))
                except psycopg.OperationalError:
                    if not self[0].execute(sql).rowcount:
                        return
            raise AssertionError("the server never ran out of connections")

    held = Held()
    yield held
    for connection in held:
        connection.close()


@contextmanager
def failing(monkeypatch, owner, name, sqlstate, times):
    """The first `times` calls of a function end with this error of the server's."""
    original, left = getattr(owner, name), [times]

    def fail(turn, *args, **kwargs):
        if left[0]:
            left[0] -= 1
            value = original(turn, *args, **kwargs)
            turn.tx.execute(text(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}'; END $$"))
            return value
        return original(turn, *args, **kwargs)

    monkeypatch.setattr(owner, name, fail)
    yield
    assert left == [0]


@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03", "57014", "23505"])
def test_a_turn_that_may_pass_at_once_is_tried_again_in_the_same_term(plane, monkeypatch, sqlstate):
    with plane.scheduler(), failing(monkeypatch, accepting, "accept", sqlstate, 2):
        job_id = plane.submit()
        node = plane.node()
        with failing(monkeypatch, reports, "ended", sqlstate, 2):
            assert node.run(result=3).job == job_id
        assert plane.job(job_id)["result"] == 3
        assert plane.job(job_id)["attempts"] == 1
        assert epoch(plane) == 1


@pytest.mark.parametrize("sqlstate", ["53100", "53200", "57P01", "25006", "58030"])
def test_a_server_in_trouble_ends_the_term_and_not_the_process(plane, monkeypatch, sqlstate):
    with plane.scheduler(), failing(monkeypatch, accepting, "accept", sqlstate, 2):
        job_id = plane.submit()
        assert plane.node().run().job == job_id
        assert epoch(plane) == 3


def test_a_duty_that_fails_keeps_no_other_from_being_done(plane, monkeypatch, caplog):
    plane.expected_failures.add("Readings")
    monkeypatch.setattr(Readings, "every_seconds", 0.1)
    monkeypatch.setattr(Readings, "run_once", lambda self: 1 / 0)
    with plane.scheduler():
        node = plane.node()
        until(lambda: "duty_failed duty=Readings" in caplog.text)
        job_id = plane.submit()
        assert node.run().job == job_id
        node.silence()
        until(lambda: plane.client.nodes()[0]["state"] == "lost")


def test_a_table_that_is_locked_for_long_costs_time_alone(plane, monkeypatch):
    short = functools.partial(make_engine, lock_timeout_seconds=0.3)
    monkeypatch.setattr("broker.scheduler.command.make_engine", short)
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        attempt = started(plane, node)
        with plane.engine.begin() as tx:
            tx.execute(text("LOCK TABLE jobs"))
            handle = plane.client.submit_many([plane.signature(1)], wait=False)[0]
            with pytest.raises(AssertionError):
                node.take(timeout=plane.settings.lease_seconds + 1.0)
        assert node.run().job == handle.id
        assert node.end(attempt).committed
        assert plane.job(job_id)["attempts"] == 1


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_connection_that_was_cut_after_its_commit_was_sent_doubles_nothing(plane, monkeypatch, number):
    from broker.scheduler import leader

    original, commits, armed = leader.fenced, [], threading.Event()

    @contextmanager
    def cut(connection, epoch):
        with original(connection, epoch) as tx:
            yield tx
        if armed.is_set():
            commits.append(1)
            if len(commits) == number:
                raise OperationalError("COMMIT", {}, psycopg.OperationalError("the connection is lost"))

    monkeypatch.setattr(leader, "fenced", cut)
    with plane.scheduler():
        node = plane.node()
        armed.set()
        job_id = plane.submit()
        attempt, _ = node.take()
        node.start(attempt)
        assert node.end(attempt, result=8).committed
        # A start and an end that came together were one turn: the same report again, which changes nothing, is another.
        until(lambda: node.end(attempt, result=8).committed and len(commits) >= number)
        job = plane.job(job_id)
        assert (job["state"], job["result"], job["attempts"]) == ("completed", 8, 1)
