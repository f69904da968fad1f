"""Ends that are in the record and that nobody told Celery of."""

from __future__ import annotations

import base64
import json

import pytest
from celery import chain, chord
from sqlalchemy import text

from broker.scheduler.duties.untold import Untold
from cyxwiz_tasks.protocol.names import node_queue
from tests.integration.waiting import until


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("broker.scheduler.duties.untold._YOUNGEST_SECONDS", 0.3)
    monkeypatch.setattr("broker.scheduler.duties.untold.Untold.every_seconds", 0.1)


def result_of(plane, job_id):
    return plane.app.AsyncResult(job_id)


def test_a_result_that_the_agent_did_not_live_to_store_is_stored(plane):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        node.run(result={"sum": 7})
        assert result_of(plane, job_id).get(timeout=5) == {"sum": 7}


def test_a_failure_and_a_cancellation_are_told_too(plane):
    with plane.scheduler():
        node = plane.node()
        failed, cancelled = plane.submit(1), plane.submit(2)
        places = {attempt.job: attempt for attempt, _ in (node.take(), node.take())}
        raised = {"exception": "builtins.KeyError", "message": "KeyError: 'x'", "traceback": "Trace", "cause": "error"}
        assert node.end(places[failed], "failed", **raised).committed
        plane.client.cancel(cancelled, "enough")
        assert node.end(places[cancelled], "cancelled", cause="cancelled").committed
        until(lambda: (plane.celery_state(failed), plane.celery_state(cancelled)) == ("FAILURE", "REVOKED"))
        assert "KeyError" in repr(result_of(plane, failed).result)


def test_what_the_agent_said_stands(plane):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        plane.app.backend.store_result(job_id, "the agent's", "SUCCESS")
        node.run(result="the record's")
        other = plane.submit()
        node.run(result=2)
        assert result_of(plane, other).get(timeout=5) == 2
        assert result_of(plane, job_id).get(timeout=5) == "the agent's"


def test_a_chain_goes_on_and_a_chord_is_counted(plane):
    with plane.scheduler():
        node = plane.node(slots=8)
        last = chain(plane.signature(1), plane.signature(2)).apply_async()
        first = node.run(result=5)
        second, message = node.take()
        assert second.job == last.id != first.job
        assert node.end(second, result=6).committed
        body = chord([plane.signature(1), plane.signature(2)])(plane.signature(9))
        for value in (10, 20):
            node.run(result=value)
        called, message = node.take()
        assert called.job == body.id
        assert json.loads(base64.b64decode(message["body"]))[0] == [[10, 20], 9]
        assert node.end(called, result="all").committed
        assert body.get(timeout=5) == "all"


@pytest.mark.parametrize("hours", [0, 3])
def test_the_body_of_a_chord_runs_once_although_redis_was_emptied(plane, monkeypatch, hours):
    monkeypatch.setattr("broker.scheduler.duties.chord_parts.ChordParts.every_seconds", 0.1)
    with plane.scheduler():
        node = plane.node(slots=8)
        body = chord([plane.signature(1), plane.signature(2)])(plane.signature(9))
        first, second = node.take()[0], node.take()[0]
        assert node.end(first, result=10).committed
        until(lambda: plane.celery_state(first.job) == "SUCCESS")
        node.start(second)
        plane.wait_for(second.job, "running")
        if hours:
            with plane.engine.begin() as tx:
                sql = (
                    "UPDATE jobs SET ended_at = ended_at - make_interval(hours => :hours) WHERE id = CAST(:id AS uuid)"
                )
                tx.execute(text(sql), {"hours": hours, "id": first.job})
        plane.redis.flushall()
        until(lambda: plane.celery_state(first.job) == "SUCCESS")
        assert node.end(second, result=20).committed
        called, message = node.take()
        assert (called.job, called.attempt) == (body.id, 1)
        assert json.loads(base64.b64decode(message["body"]))[0] == [[10, 20], 9]
        assert node.end(called, result="all").committed
        assert body.get(timeout=5) == "all"
        plane.redis.flushall()
        told = (second.job, body.id) if hours else (first.job, second.job, body.id)
        until(lambda: all(plane.celery_state(job) == "SUCCESS" for job in told))
        other = plane.submit()
        assert node.take()[0].job == other, "if the body came once more, it is known"
        assert plane.job(body.id)["attempts"] == 1


def test_a_new_leader_tells_what_the_last_one_did_not_live_to_tell(plane, monkeypatch):
    monkeypatch.setattr("broker.scheduler.duties.untold.Untold.every_seconds", 60.0)
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        node.run(result=1)
        assert plane.celery_state(job_id) == "ASSIGNED"
    with plane.scheduler():
        assert result_of(plane, job_id).get(timeout=5) == 1


def test_a_redis_that_was_emptied_gets_the_results_again(plane):
    with plane.scheduler():
        node = plane.node()
        ids = [plane.submit(number) for number in range(3)]
        for _ in ids:
            node.run(result="done")
        for job_id in ids:
            assert result_of(plane, job_id).get(timeout=5) == "done"
        plane.redis.flushdb()
        until(lambda: [plane.celery_state(job_id) for job_id in ids] == 3 * ["SUCCESS"])


def test_thousands_of_jobs_are_runnable_again_soon_after_redis_was_emptied(plane):
    slots, total = 200, 4000
    with plane.scheduler():
        plane.client.submit_many([plane.signature(number) for number in range(total)])
        node = plane.node(slots=slots, cpu_cores=slots)
        queue = node_queue(node.id)
        until(lambda: plane.redis.llen(queue) == slots)
        plane.redis.flushdb()
        until(lambda: plane.redis.llen(queue) == slots, 30)
        for _ in range(slots):
            assert node.end(node.take()[0]).committed
        assert node.take(10)[0].attempt == 1, "the next ones follow"
        assert plane.client.status()["jobs"]["pending"] == total - 2 * slots


def test_nobody_is_told_of_a_job_whose_result_is_ignored(plane, monkeypatch):
    turns = []
    original = Untold._tell
    monkeypatch.setattr(Untold, "_tell", lambda self, ids: turns.append(ids) or original(self, ids))
    with plane.scheduler():
        node = plane.node()
        ignored = plane.signature(1).apply_async(ignore_result=True).id
        assert node.run().job == ignored
        other = plane.submit(2, name='"ignore_result": true')
        node.run(result=2)
        assert result_of(plane, other).get(timeout=5) == 2
        assert turns == [[other]]
