"""Cancel from every side and in every state."""

from __future__ import annotations

import json
import uuid

import pytest
from celery import chord

from cyxwiz_tasks.errors import NotFound
from cyxwiz_tasks.protocol.names import progress_key
from db import jobs
from tests.integration.waiting import until


def last_update(plane, job_id):
    [(_, fields)] = plane.redis.xrevrange(progress_key(job_id), count=1)
    return json.loads(fields[b"update"])


@pytest.mark.parametrize("by", ["client", "revoke", "revoke and terminate"])
def test_a_waiting_job_is_cancelled_at_once(plane, by):
    with plane.scheduler():
        job_id = plane.submit()
        if by == "client":
            plane.client.cancel(job_id, "not needed")
        else:
            until_the_scheduler_listens(plane)
            plane.app.control.revoke(job_id, terminate=by != "revoke")
        job = plane.wait_for(job_id, "cancelled")
        assert job["cause"] == "cancelled"
        until(lambda: plane.celery_state(job_id) == "REVOKED")
        assert last_update(plane, job_id)["kind"] == "end"
        node = plane.node()
        other = plane.submit()
        assert node.take()[0].job == other


def test_a_delayed_job_is_cancelled_at_once(plane):
    with plane.scheduler():
        job_id = plane.signature(1).apply_async(countdown=3600).id
        until(lambda: len(plane.client.jobs()) == 1)
        plane.client.cancel(job_id)
        assert plane.job(job_id)["state"] == "cancelled"


@pytest.mark.parametrize("started", [False, True])
def test_the_node_of_an_assigned_or_running_job_is_told_and_has_the_last_word(plane, started):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        assignment, _ = node.take()
        if started:
            node.start(assignment)
        plane.client.cancel(job_id, "too slow")
        stop = node.told()
        assert (stop.kind, stop.job, stop.token, stop.outcome) == ("stop", job_id, assignment.token, "cancelled")
        plane.client.cancel(job_id)
        assert node.told().token == assignment.token, "asked again, told again"
        assert node.end(assignment, "cancelled", cause="cancelled").committed
        assert plane.job(job_id)["state"] == "cancelled"
        assert "cancelled" in str(plane.client.why(job_id))


def test_a_running_job_is_revoked_only_with_terminate(plane):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        assignment, _ = node.take()
        node.start(assignment)
        plane.wait_for(job_id, "running")
        until_the_scheduler_listens(plane)
        plane.app.control.revoke(job_id)
        plane.app.control.revoke([job_id], terminate=True)
        assert node.told().token == assignment.token
        assert node.client.llen(f"cyxwiz.control.{node.id}") == 0, "the first revoke was not for a running job"


def test_a_job_that_ends_before_it_hears_of_its_cancellation_has_ended(plane):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        assignment, _ = node.take()
        plane.client.cancel(job_id)
        assert node.end(assignment, result=1).committed
        assert plane.job(job_id)["state"] == "completed"
        plane.client.cancel(job_id)
        assert plane.job(job_id)["state"] == "completed"


def test_a_preempted_job_that_was_to_be_cancelled_is_cancelled(plane):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        assignment, _ = node.take()
        node.start(assignment)
        plane.client.cancel(job_id)
        assert node.end(assignment, "preempted").committed
        assert plane.job(job_id)["state"] == "cancelled"
        assert last_update(plane, job_id)["state"] == "REVOKED"


def test_a_node_that_drops_a_revoked_message_without_a_word_holds_nothing_up(plane, monkeypatch):
    monkeypatch.setattr("broker.scheduler.duties.unstarted._PATIENCE_SECONDS", 0.3)
    with plane.scheduler():
        node = plane.node(slots=1)
        job_id = plane.submit()
        node.take()
        plane.client.cancel(job_id)
        plane.wait_for(job_id, "cancelled")
        until(lambda: plane.celery_state(job_id) == "REVOKED")
        other = plane.submit()
        assert node.run().job == other


def test_nobody_cancels_what_is_not_there(plane):
    with plane.scheduler():
        with pytest.raises(NotFound):
            plane.client.cancel("0190b5a0-0000-7000-8000-000000000000")
        until_the_scheduler_listens(plane)
        plane.app.control.revoke("a task of another application", terminate=True)
        plane.submit()


def test_a_broadcast_that_names_very_many_tasks_costs_one_statement_for_all_that_wait(plane, monkeypatch):
    asked_one_by_one = []
    monkeypatch.setattr(jobs, "request_cancel", lambda tx, epoch, job_id, reason: asked_one_by_one.append(job_id))
    with plane.scheduler():
        waiting = [plane.submit(number) for number in range(2)]
        delayed = plane.signature(3).apply_async(countdown=3600).id
        until(lambda: len(plane.client.jobs()) == 3)
        until_the_scheduler_listens(plane)
        others = [str(uuid.uuid4()) for _ in range(3000)]
        plane.app.control.revoke([*waiting, *others, "a task of another application", delayed])
        for job_id in (*waiting, delayed):
            assert plane.wait_for(job_id, "cancelled")["message"] == "revoked"
    assert asked_one_by_one == []
    assert plane.broken_rules() == {}


def test_a_chord_hears_of_its_cancelled_parts(plane):
    with plane.scheduler():
        body = chord([plane.signature(1), plane.signature(2)], app=plane.app)(plane.signature(0)).id
        until(lambda: len(plane.client.jobs()) == 2)
        for row in plane.client.jobs():
            plane.client.cancel(row["id"])
        until(lambda: plane.celery_state(body) == "FAILURE")


def until_the_scheduler_listens(plane):
    # kombu subscribes to a pattern. Nodes of other tests may listen on the same server, in another database of it.
    database = str(plane.redis.connection_pool.connection_kwargs["db"])
    until(lambda: any(one["db"] == database and int(one["psub"]) for one in plane.redis.client_list()))
