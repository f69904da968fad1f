"""Jobs that must have started, or ended, by some time."""

from __future__ import annotations

import time
from functools import partial
from threading import Thread

import pytest

from cyxwiz_tasks.errors import JobCancelled, JobFailed
from cyxwiz_tasks.protocol.reports import Process
from cyxwiz_tasks.states import Cause
from db import jobs
from tests.integration.waiting import until


def test_a_job_that_waits_past_its_deadline_fails(plane):
    with plane.scheduler():
        began = time.monotonic()
        handle = plane.client.submit(plane.signature(1), deadline=0.5)
        with pytest.raises(JobFailed, match="deadline") as raised:
            handle.result(timeout=10)
        assert time.monotonic() - began >= 0.5
        assert raised.value.cause == "deadline"
        assert plane.causes(handle.id) == [("pending", None), ("failed", "deadline")]
        node = plane.node()
        other = plane.submit()
        assert node.take()[0].job == other


def test_a_node_is_told_what_is_left_until_the_deadline_and_ends_the_job(plane):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit(deadline=3600, max_retries=5)
        assignment, _ = node.take()
        assert 3500 < assignment.deadline_seconds <= 3600
        node.start(assignment)
        reply = node.end(assignment, "failed", cause="deadline", message="it did not end by its deadline")
        assert reply.final
        assert (plane.job(job_id)["state"], plane.job(job_id)["cause"]) == ("failed", "deadline")
        plane.submit(2)
        assert node.take()[0].deadline_seconds is None


@pytest.mark.parametrize("leaders", [1, 2])
def test_a_node_that_does_not_end_an_overdue_job_loses_it(plane, monkeypatch, leaders):
    monkeypatch.setattr("broker.scheduler.duties.overdue_jobs._PATIENCE_SECONDS", -1.5)
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit(deadline=2.5)
        assignment, _ = node.take()
        node.start(assignment)
        plane.wait_for(job_id, "running")
        if leaders == 1:
            ended_by_the_scheduler(plane, node, assignment)
    if leaders == 2:
        with plane.scheduler():
            ended_by_the_scheduler(plane, node, assignment)


def ended_by_the_scheduler(plane, node, assignment):
    job = plane.wait_for(assignment.job, "failed")
    assert (job["cause"], job["attempt_list"][0]["state"]) == ("deadline", "failed")
    until(lambda: plane.celery_state(assignment.job) == "FAILURE")
    stop = node.told()
    assert (stop.kind, stop.token, stop.grace_seconds) == ("stop", assignment.token, 0)
    assert not node.end(assignment, result="too late").committed


def test_a_job_that_ended_in_time_while_nobody_led_has_ended_in_time(plane, monkeypatch):
    monkeypatch.setattr("broker.scheduler.duties.overdue_jobs._PATIENCE_SECONDS", -1.0)
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit(deadline=1.5)
        deadline_at = time.monotonic() + 1.5
        assignment, _ = node.take()
        node.start(assignment)
        plane.wait_for(job_id, "running")
    replies = []
    reporting = Thread(target=lambda: replies.append(node.end(assignment, result=7)))
    reporting.start()
    until(lambda: time.monotonic() > deadline_at + 1.1)
    with plane.scheduler():
        reporting.join()
        assert replies[0].committed
        assert plane.job(job_id)["state"] == "completed"


def test_an_overdue_job_that_comes_back_to_the_queue_fails(plane):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit(deadline=0.8)
        assignment, _ = node.take()
        node.start(assignment)
        node.leave()
        job = plane.wait_for(job_id, "failed")
        assert job["cause"] == "deadline"


@pytest.mark.parametrize("leaders", [1, 2])
def test_the_deadline_ends_a_job_that_is_held_and_its_story_stays(plane, leaders):
    with plane.scheduler():
        handle = plane.client.submit(plane.signature(1), deadline=3.0)
        with plane.engine.begin() as tx:
            jobs.hold(tx, 1, [handle.id], Cause.CRASHED, "it crashed three times")
        if leaders == 1:
            ended_while_held(plane, handle)
    if leaders == 2:
        assert plane.job(handle.id)["state"] == "held"
        with plane.scheduler():
            ended_while_held(plane, handle)


def ended_while_held(plane, handle):
    with pytest.raises(JobFailed, match=r"deadline.* crashed three times"):
        handle.result(timeout=10)
    assert plane.causes(handle.id) == [("pending", None), ("held", "crashed"), ("failed", "deadline")]
    assert "it crashed three times" in plane.job(handle.id)["message"]


def test_a_job_that_does_not_start_by_its_time_is_cancelled(plane):
    with plane.scheduler():
        handle = plane.client.submit(plane.signature(1), start_by=0.5)
        with pytest.raises(JobCancelled, match="start_by"):
            handle.result(timeout=5)
        assert plane.job(handle.id)["cause"] == "expired"


def test_of_many_jobs_that_do_not_start_in_time_all_are_cancelled(plane, monkeypatch):
    monkeypatch.setattr(jobs, "expire", partial(jobs.expire, limit=2))
    with plane.scheduler():
        many = [(plane.signature(number), {"start_by": 0.5}) for number in range(5)]
        ids = [handle.id for handle in plane.client.submit_many(many)]
        submitted = time.monotonic()
    until(lambda: time.monotonic() > submitted + 0.6)
    with plane.scheduler():
        until(lambda: {plane.job(id)["cause"] for id in ids} == {"expired"})


def test_a_job_that_was_lost_before_it_started_has_not_kept_its_start_by(plane, monkeypatch):
    monkeypatch.setattr("broker.scheduler.duties.expired_jobs._LOOK_SECONDS", 0.3, raising=False)
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit(start_by=0.5)
        start_by = time.monotonic() + 0.5
        node.take()
        until(lambda: time.monotonic() > start_by + 0.5)
        assert plane.job(job_id)["state"] == "assigned"
        node.leave()
        assert plane.wait_for(job_id, "cancelled")["cause"] == "expired"


def test_the_next_leader_knows_too_by_when_a_job_on_a_node_must_have_started(plane):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit(start_by=1.0)
        node.take()
    with plane.scheduler():
        until(lambda: plane.job(job_id)["state"] == "assigned")
        node.leave()
        assert plane.wait_for(job_id, "cancelled")["cause"] == "expired"


def test_a_job_that_has_started_once_has_kept_its_start_by(plane):
    with plane.scheduler():
        node = plane.node(slots=1)
        job_id = plane.submit(start_by=1.0)
        assignment, _ = node.take()
        node.start(assignment)
        plane.wait_for(job_id, "running")
        blocker = plane.submit(2, priority="high")
        assert node.end(assignment, "preempted", cause="preempted").committed
        second, _ = node.take()
        assert second.job == blocker
        late = plane.submit(3, start_by=1.2, priority="low")
        plane.wait_for(late, "cancelled")
        assert plane.job(job_id)["state"] == "pending"
        node.end(second)
        assert node.run().job == job_id


def test_a_job_of_whose_start_its_end_alone_tells_has_kept_its_start_by(plane):
    with plane.scheduler():
        node = plane.node(slots=1)
        job_id = plane.submit(start_by=0.8)
        assignment, _ = node.take()
        blocker = plane.submit(2, priority="high")
        process = Process(pid=4711, device="cpu")
        assert node.end(assignment, "preempted", cause="preempted", process=process).committed
        second, _ = node.take()
        assert second.job == blocker
        late = plane.submit(3, start_by=1.0, priority="low")
        plane.wait_for(late, "cancelled")
        node.start(assignment)  # too late: the attempt is over
        node.end(second)
        assert node.run().job == job_id
    states = [state for state, _ in plane.causes(job_id)]
    assert states == ["pending", "assigned", "running", "pending", "assigned", "running", "completed"]
