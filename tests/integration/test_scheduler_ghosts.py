"""What is over leaves Redis and, later, the record."""

from __future__ import annotations

import json
import uuid

import pytest
from sqlalchemy import text

from cyxwiz_tasks.protocol.names import control_key, node_queue, reply_key
from tests.integration.waiting import until


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("broker.scheduler.duties.ghosts.Ghosts.every_seconds", 0.1)
    monkeypatch.setattr("broker.scheduler.duties.prune.Prune.every_seconds", 0.1)
    monkeypatch.setattr("broker.scheduler.duties.prune._REST_SECONDS", 0.1)


def test_messages_of_attempts_that_were_taken_back_leave_the_queue(plane):
    with plane.scheduler():
        node = plane.node()
        queue = node_queue(node.id)
        job_id = plane.submit()
        until(lambda: plane.redis.llen(queue) == 1)
        [message] = plane.redis.lrange(queue, 0, -1)
        stale = json.loads(message)
        stale["headers"]["cyxwiz_assignment"]["token"] += 1000
        plane.redis.rpush(queue, json.dumps(stale), "no message at all")
        plane.redis.lpush(queue, message)
        until(lambda: plane.redis.llen(queue) == 1)
        assert node.run().job == job_id


def test_lists_of_nodes_that_are_gone_are_removed_and_nobody_elses(plane):
    stranger, users = node_queue(str(uuid.uuid4())), node_queue("of-the-user")
    with plane.scheduler():
        node = plane.node()
        plane.submit()
        until(lambda: plane.redis.llen(node_queue(node.id)) == 1)
        for key in (stranger, users, control_key(node.id)):
            plane.redis.lpush(key, "x")
        node.die()
        until(lambda: not plane.redis.exists(node_queue(node.id), control_key(node.id)))
        assert plane.redis.exists(stranger, users) == 2


def test_answers_that_nobody_fetched_do_not_stay(plane):
    key = reply_key("never-fetched")
    plane.redis.lpush(key, "x")
    with plane.scheduler():
        until(lambda: plane.redis.ttl(key) > 0)


def test_what_a_leader_left_is_given_back_although_all_after_it_ended_at_once(plane):
    message = json.dumps(plane.redis_message(plane.signature(1)))
    plane.redis.lpush("cyxwiz.busy.7.0", message)
    with plane.engine.begin() as tx:
        tx.execute(text("UPDATE leadership SET epoch = 100"))
    with plane.scheduler():
        until(lambda: len(plane.client.jobs()) == 1)
        assert not plane.redis.exists("cyxwiz.busy.7.0")


def test_what_dead_processes_left_unacknowledged_is_removed(plane, monkeypatch):
    monkeypatch.setattr("broker.scheduler.duties.ghosts._UNACKED_IDLE_SECONDS", 1)
    plane.redis.hset("cyxwiz.unacked.gone", "tag", "message")
    with plane.scheduler():
        until(lambda: not plane.redis.exists("cyxwiz.unacked.gone"))


def test_jobs_that_ended_long_ago_leave_the_record_with_all_that_is_theirs(plane):
    with plane.scheduler():
        node = plane.node()
        old, young, waiting = plane.submit(1), plane.submit(2), None
        for _ in range(2):
            attempt, _ = node.take()
            node.start(attempt)
            node.tell(attempt, {"at": 1.0, "loss": 2.0})
            assert node.end(attempt).committed
        waiting = plane.submit(3, resources={"gpus": 1})
        with plane.engine.begin() as tx:
            days = plane.settings.retention_days + 1
            sql = "UPDATE jobs SET ended_at = now() - make_interval(days => :days) WHERE id = CAST(:id AS uuid)"
            tx.execute(text(sql), {"days": int(days), "id": old})
            tx.execute(text("UPDATE events SET at = now() - make_interval(days => 999) WHERE job_id IS NULL"))

        def left():
            with plane.engine.connect() as tx:
                tables = ("jobs", "attempts", "metrics", "events")
                column = {"jobs": "id"}
                return [
                    tx.scalar(
                        text(f"SELECT count(*) FROM {table} WHERE {column.get(table, 'job_id')} = CAST(:id AS uuid)"),
                        {"id": old},
                    )
                    for table in tables
                ]

        until(lambda: left() == [0, 0, 0, 0])
        assert [plane.job(id)["state"] for id in (young, waiting)] == ["completed", "pending"]


def test_nodes_that_are_long_gone_leave_the_record_unless_something_of_theirs_is_kept(plane, monkeypatch):
    for rest in ("_NODE_SECONDS", "_NODE_REST_SECONDS"):
        monkeypatch.setattr(f"broker.scheduler.duties.prune.{rest}", 0.0)
    monkeypatch.setattr("broker.scheduler.duties.prune.Prune.every_seconds", 0.05)
    monkeypatch.setattr("broker.scheduler.duties.prune._REST_SECONDS", 0.0)
    with plane.scheduler():
        nodes = [plane.node(name) for name in ("empty", "idle", "drained", "worked")]
        plane.client.drain("drained")
        plane.submit(1, resources={"node": "worked"})
        nodes[-1].run()
        for node in nodes:
            node.leave()
        plane.node("here")
        with plane.engine.begin() as tx:
            days = int(plane.settings.retention_days) + 1
            sql = "UPDATE nodes SET last_seen_at = now() - make_interval(days => :days)"
            tx.execute(text(sql), {"days": days})

        def left():
            with plane.engine.connect() as tx:
                return sorted(tx.scalars(text("SELECT name FROM nodes")))

        until(lambda: left() == ["drained", "here", "worked"])
