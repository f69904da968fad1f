"""What nodes tell that they run, against what the record says."""

from __future__ import annotations

import pytest

from cyxwiz_tasks.protocol.names import control_key, running_key
from cyxwiz_tasks.protocol.reports import Running
from tests.integration.waiting import until

NOTHING = Running(incarnation="", number=0).model_dump_json()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("broker.scheduler.duties.reconcile.Reconcile.every_seconds", 0.15)
    monkeypatch.setattr("broker.scheduler.stopping._PATIENCE_SECONDS", 0.2)


def test_what_a_node_runs_that_is_not_the_records_is_stopped(plane):
    with plane.scheduler():
        node = plane.node()
        plane.submit()
        mine, _ = node.take()
        node.start(mine)
        node.tokens = (mine.token, 4711)
        stop = node.told()
        assert (stop.kind, stop.token, stop.grace_seconds) == ("stop", 4711, 0)
        assert node.told().token == 4711, "until it is gone"
        node.tokens = (mine.token,)
        assert node.end(mine).committed


def test_an_attempt_that_its_node_does_not_know_is_placed_again(plane):
    with plane.scheduler():
        node = plane.node()
        ids = [plane.submit(), plane.submit()]
        kept, gone = (node.take()[0] for _ in ids)
        for attempt in (kept, gone):
            node.start(attempt)
        until(lambda: [plane.job(id)["state"] for id in ids] == ["running", "running"])
        node.tokens = (kept.token,)
        again, _ = node.take()
        assert (again.job, again.attempt) == (gone.job, 2)
        assert ("pending", "node_lost") in plane.causes(gone.job)
        assert not node.end(gone).committed
        assert node.end(kept).committed
        assert plane.job(kept.job)["attempts"] == 1


def test_an_attempt_that_was_not_started_yet_is_not_missed(plane):
    with plane.scheduler():
        node = plane.node()
        node.tokens = ()
        plane.submit()
        waiting, _ = node.take()
        other = plane.submit()
        started, _ = node.take()
        node.start(started)
        # Once the other one is given up, so would be this one.
        again, _ = node.take()
        assert again.job == other
        node.tokens = (again.token,)
        assert node.end(waiting).committed


def test_a_telling_of_another_start_is_not_listened_to(plane):
    def number():
        return Running.model_validate_json(plane.redis.get(running_key(node.id)) or NOTHING).number

    with plane.scheduler():
        node = plane.node()
        node.incarnation, node.tokens = "another", (1, 2)
        first = number()
        until(lambda: number() > first + 20)
        assert plane.redis.llen(control_key(node.id)) == 0


def test_a_cancellation_that_redis_lost_is_told_again(plane):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        attempt, _ = node.take()
        node.start(attempt)
        node.tokens = (attempt.token,)
        plane.wait_for(job_id, "running")
        plane.client.cancel(job_id)
        assert node.told().token == attempt.token
        again = node.told()
        assert (again.token, again.outcome) == (attempt.token, "cancelled")
        assert node.end(attempt, "cancelled").committed
        assert plane.job(job_id)["state"] == "cancelled"


def test_a_new_leader_tells_of_a_cancellation_that_the_last_one_may_not_have_told(plane):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        attempt, _ = node.take()
        node.start(attempt)
        plane.wait_for(job_id, "running")
        plane.client.cancel(job_id)
    plane.redis.delete(control_key(node.id))
    with plane.scheduler():
        node.tokens = (attempt.token,)
        assert node.told().token == attempt.token
        assert node.end(attempt, "cancelled").committed
