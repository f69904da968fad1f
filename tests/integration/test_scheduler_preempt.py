"""Critical jobs take the place of others."""

from __future__ import annotations

import pytest

from tests.integration.control_plane import ControlPlane
from tests.integration.waiting import until


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("broker.scheduler.duties.preempt.Preempt.every_seconds", 0.02)


def test_a_critical_job_takes_the_youngest_place_and_its_victim_goes_on_later(plane):
    with plane.scheduler():
        node = plane.node(slots=2)
        old, young = plane.submit(1), plane.submit(2)
        places = {}
        for _ in (old, young):
            attempt, _ = node.take()
            node.start(attempt)
            places[attempt.job] = attempt
        waiting = plane.submit(3)
        urgent = plane.submit(4, priority="critical")
        stop = node.told()
        assert (stop.token, stop.outcome) == (places[young].token, "preempted")
        assert stop.grace_seconds == plane.settings.preempt_grace_seconds
        assert urgent in stop.reason
        assert node.end(places[young], "preempted", cause="preempted").committed
        assert node.run().job == urgent
        assert {node.run().job, node.run().job} == {young, waiting}
        assert node.end(places[old]).committed
        assert [plane.job(id)["attempts"] for id in (old, young, urgent)] == [1, 2, 1]
        assert plane.redis.llen(f"cyxwiz.control.{node.id}") == 0, "once was enough"


def test_who_has_written_a_checkpoint_goes_before_a_younger_one_and_a_new_leader_knows_it(plane, monkeypatch):
    monkeypatch.setattr("broker.scheduler.duties.reconcile.Reconcile.every_seconds", 0.1)
    with plane.scheduler():
        node = plane.node(slots=2)
        old, young = plane.submit(1), plane.submit(2)
        saved, unsaved = node.take()[0], node.take()[0]
        assert (saved.job, unsaved.job) == (old, young)
        for attempt in (saved, unsaved):
            node.start(attempt)
        node.tokens, node.checkpoint_age_seconds = (saved.token, unsaved.token), {saved.token: 0.0, 4711: 0.0}
        until(lambda: "Its last checkpoint was" in str(plane.client.why(old)))
        until(lambda: "It has told of no checkpoint yet." in str(plane.client.why(young)))
    with plane.scheduler():
        urgent = plane.submit(3, priority="critical")
        stop = node.told()
        assert (stop.token, stop.outcome) == (saved.token, "preempted")
        assert node.end(saved, "preempted", cause="preempted").committed
        assert node.run().job == urgent
        again, _ = node.take()
        assert again.job == old
        for attempt in (again, unsaved):
            assert node.end(attempt).committed


def test_a_place_of_several_is_kept_while_it_is_being_cleared(plane):
    with plane.scheduler():
        node = plane.node(gpus=2, slots=4)
        places = {}
        for number in (1, 2):
            job_id = plane.submit(number, resources={"gpus": 1}, priority="low")
            places[job_id], _ = node.take()
        small = plane.submit(3, resources={"gpus": 1})
        urgent = plane.submit(4, resources={"gpus": 2}, priority="critical")
        tokens = {node.told().token, node.told().token}
        assert tokens == {attempt.token for attempt in places.values()}
        first, second = places.values()
        assert node.end(first, "preempted").committed
        plane.client.why(small)
        assert plane.job(small)["state"] == "pending", "the GPU that is free is kept"
        assert node.end(second, "preempted").committed
        assert node.run().job == urgent
        assert {node.run().job for _ in range(3)} == {small, *places}


def test_a_critical_job_that_is_cancelled_keeps_nothing(plane):
    with plane.scheduler():
        node = plane.node(gpus=2, slots=4)
        for number in (1, 2):
            plane.submit(number, resources={"gpus": 1}, priority="low")
        first, second = node.take()[0], node.take()[0]
        urgent = plane.submit(4, resources={"gpus": 2}, priority="critical")
        node.told()
        node.told()
        small = plane.submit(3, resources={"gpus": 1})
        assert node.end(first, "preempted").committed
        plane.client.cancel(urgent)
        assert node.take()[0].job == small
        assert node.end(second, "preempted").committed


def test_the_next_leader_knows_who_was_asked_to_leave_for_whom(plane):
    plane.settings = plane.settings.model_copy(update={"lease_seconds": 10.0})
    with plane.scheduler():
        one = plane.node("one", slots=1)
        plane.submit(1)
        kept, _ = one.take()
        two = plane.node("two", slots=1)
        plane.submit(2)
        victim, _ = two.take()
        two.start(victim)
        urgent = plane.submit(3, priority="critical")
        assert two.told().token == victim.token
        two.silence()
    with plane.scheduler():
        until(lambda: next(row["state"] for row in plane.client.nodes() if row["name"] == "one") == "up")
        for _ in range(20):
            plane.client.why(urgent)
        assert plane.redis.llen(f"cyxwiz.control.{one.id}") == 0, "a second victim was asked for the same job"
        two.tokens = (victim.token,)
        two.beat()
        again = two.told()
        assert (again.token, again.outcome) == (victim.token, "preempted"), "it may not have heard it"
        assert two.end(victim, "preempted", cause="preempted").committed
        assert two.run().job == urgent
        assert one.end(kept).committed


def test_nobody_is_preempted_for_nothing(plane):
    with plane.scheduler():
        node = plane.node(slots=1)
        plane.submit(1, priority="critical")
        running, _ = node.take()
        plane.submit(2, priority="critical")
        plane.submit(3, priority="high")
        impossible = plane.submit(4, priority="critical", resources={"gpus": 8})
        for _ in range(10):
            plane.client.why(impossible)
        assert node.end(running).committed
        node.run()
        assert plane.redis.llen(f"cyxwiz.control.{node.id}") == 0


def test_preemption_can_be_switched_off(broker_url, database_url, engine):
    never = ControlPlane(broker_url, database_url, engine, preempt_from="never")
    with never.scheduler():
        node = never.node(slots=1)
        never.submit(1, priority="low")
        running, _ = node.take()
        urgent = never.submit(2, priority="critical")
        for _ in range(10):
            never.client.why(urgent)
        assert node.end(running).committed
        assert node.run().job == urgent
        assert never.redis.llen(f"cyxwiz.control.{node.id}") == 0
    never.close()


def test_a_job_that_was_preempted_often_enough_is_left_alone(broker_url, database_url, engine):
    once = ControlPlane(broker_url, database_url, engine, preempt_limit=1)
    with once.scheduler():
        node = once.node(slots=1)
        job = once.submit(1, priority="low")
        first, _ = node.take()
        urgent = once.submit(2, priority="critical")
        assert node.told().token == first.token
        assert node.end(first, "preempted", cause="preempted").committed
        assert node.run().job == urgent
        second, _ = node.take()
        assert (second.job, second.attempt) == (job, 2)
        patient = once.submit(3, priority="critical")
        for _ in range(10):
            once.client.why(patient)
        assert once.redis.llen(f"cyxwiz.control.{node.id}") == 0
        assert node.end(second).committed
        assert node.run().job == patient
    once.close()


def test_a_critical_job_that_its_projects_quota_holds_back_takes_nobodys_place(plane):
    with plane.scheduler():
        node = plane.node(gpus=1)
        plane.client.set_quota("lab", borrow_gpus=0)
        plane.submit(1, resources={"gpus": 1}, priority="low")
        running, _ = node.take()
        urgent = plane.submit(2, project="lab", resources={"gpus": 1}, priority="critical")
        for _ in range(10):
            plane.client.why(urgent)
        assert plane.redis.llen(f"cyxwiz.control.{node.id}") == 0
        plane.client.set_quota("lab", borrow_gpus=1)
        assert node.told().token == running.token
        assert node.end(running, "preempted").committed
        assert node.run().job == urgent
