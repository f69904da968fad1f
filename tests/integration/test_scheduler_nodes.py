"""Nodes come, go, fall silent and come back."""

from __future__ import annotations

import time
import uuid
from contextlib import ExitStack

import pytest

from cyxwiz_tasks.broker_connection import connect
from cyxwiz_tasks.protocol.names import BEATS, control_key, node_queue
from cyxwiz_tasks.resources import Resources
from tests.integration.fake_node import FakeNode
from tests.integration.waiting import until


def state_of(plane, node):
    return next(row["state"] for row in plane.client.nodes() if row["id"] == node.id)


def test_a_silent_node_is_suspect_then_lost_and_its_jobs_run_elsewhere(plane):
    with plane.scheduler():
        first = plane.node("first")
        job_id = plane.submit()
        lost, _ = first.take()
        first.start(lost)
        second = plane.node("second")
        first.silence()
        last_beat = plane.redis.zscore(BEATS, first.id)
        until(lambda: state_of(plane, first) == "suspect")
        other = plane.submit()
        assert second.run().job == other, "nothing new for a suspect node"
        again, _ = second.take()
        seconds, microseconds = plane.redis.time()
        silent_seconds = seconds + microseconds / 1e6 - last_beat
        assert (again.job, again.attempt) == (job_id, 2)
        assert again.token > lost.token
        assert plane.settings.lease_seconds <= silent_seconds < plane.settings.lease_seconds + 6.0
        assert state_of(plane, first) == "lost"
        assert not first.end(lost, result="too late").committed
        second.start(again)
        assert second.end(again, result="in time").committed
        job = plane.job(job_id)
        assert (job["result"], job["attempts"]) == ("in time", 2)
        assert ("pending", "node_lost") in plane.causes(job_id)


def test_jobs_of_a_node_that_was_killed_are_placed_again_long_before_its_lease_ends(plane):
    plane.settings = plane.settings.model_copy(update={"lease_seconds": 60.0})
    with plane.scheduler():
        first = plane.node("first")
        cut_off = plane.node("cut off")
        ids = [plane.submit(), plane.submit()]
        places = {node.name: node.take()[0] for node in (first, cut_off)}
        second = plane.node("second")
        began = time.monotonic()
        cut_off.silence()
        first.die()
        again, _ = second.take()
        assert again.job == places["first"].job
        assert time.monotonic() - began < plane.settings.lease_seconds / 2
        assert state_of(plane, cut_off) == "suspect", "it still holds its connection"
        assert set(ids) == {again.job, places["cut off"].job}
        cut_off.die()
        assert second.take()[0].job == places["cut off"].job


def test_a_killed_node_with_an_exclusive_job_is_given_its_whole_lease(plane):
    with plane.scheduler():
        first = plane.node("first")
        plane.submit(exclusive=True)
        first.start(first.take()[0])
        second = plane.node("second")
        began = time.monotonic()
        first.die()
        second.take()
        assert time.monotonic() - began > plane.settings.lease_seconds - 0.5, "its process may live, cut off"


def test_what_a_lost_node_has_not_taken_is_gone_from_its_queue(plane):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        until(lambda: plane.job(job_id)["state"] == "assigned")
        until(lambda: plane.redis.llen(node_queue(node.id)) == 1)
        node.silence()
        until(lambda: plane.job(job_id)["state"] == "pending")
        until(lambda: plane.redis.llen(node_queue(node.id)) == 0)


def test_a_suspect_node_that_beats_again_is_up_and_keeps_its_job(plane):
    plane.settings = plane.settings.model_copy(update={"lease_seconds": 10.0})
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        assignment, _ = node.take()
        node.start(assignment)
        node.silence()
        until(lambda: state_of(plane, node) == "suspect")
        node.beat()
        until(lambda: state_of(plane, node) == "up")
        assert node.end(assignment).committed
        assert plane.job(job_id)["attempts"] == 1


def test_a_lost_node_that_returns_is_asked_who_it_is_and_told_what_to_stop(plane):
    with plane.scheduler():
        node = plane.node()
        plane.submit()
        assignment, _ = node.take()
        node.start(assignment)
        node.silence()
        until(lambda: state_of(plane, node) == "lost")
        node.beat()
        assert node.told().kind == "register_again"
        assert node.register(running=(assignment.token,), beat=False).committed
        stop = node.told()
        assert (stop.kind, stop.token) == ("stop", assignment.token)
        assert node.take()[0].token > assignment.token


def test_a_new_start_of_a_node_loses_what_it_no_longer_runs(plane):
    plane.settings = plane.settings.model_copy(update={"lease_seconds": 10.0})
    with plane.scheduler():
        node = plane.node(slots=2)
        kept, gone = plane.submit(1), plane.submit(2)
        assignments = {assignment.job: assignment for assignment, _ in (node.take(), node.take())}
        node.silence()
        until(lambda: state_of(plane, node) == "suspect")
        node.incarnation = "after"
        assert node.register(running=(assignments[kept].token,)).committed
        again, _ = node.take()
        assert (again.job, again.attempt, again.incarnation) == (gone, 2, "after")
        assert node.end(assignments[kept]).committed
        assert not node.end(assignments[gone]).committed


def test_registering_again_in_the_same_start_loses_nothing(plane):
    with plane.scheduler():
        node = plane.node()
        plane.submit()
        assignment, _ = node.take()
        assert node.register(beat=False).committed
        assert node.end(assignment).committed


def test_two_machines_with_one_id_do_not_take_turns(plane):
    plane.settings = plane.settings.model_copy(update={"suspect_after_seconds": 2.0, "lease_seconds": 10.0})
    with plane.scheduler():
        node = plane.node("original")
        copy = FakeNode(connect(plane.broker_url), "copy", node.id)
        reply = copy.register()
        assert not reply.committed
        assert "beats already" in reply.message
        assert "folder of its own" in reply.message
        node.silence()
        until(lambda: copy.register().committed)
        plane.nodes.append(copy)
        assert [row["name"] for row in plane.client.nodes()] == ["copy"]


def test_a_node_that_leaves_gives_its_jobs_back_at_once(plane):
    with plane.scheduler():
        node = plane.node("leaving")
        job_id = plane.submit()
        node.take()
        staying = plane.node("staying")
        assert node.leave().committed
        assert staying.take(2)[0].job == job_id
        assert state_of(plane, node) == "left"
        assert plane.redis.zscore(BEATS, node.id) is None
        assert not node.leave().committed


def test_a_node_that_is_about_to_stop_gets_nothing_new_until_it_is_there_again(plane):
    with plane.scheduler():
        node, running = plane.node("old"), plane.submit(1)
        attempt, _ = node.take()
        node.start(attempt)
        node.say_stopping()
        waiting = plane.submit(2)
        plane.client.why(waiting)
        assert plane.job(waiting)["state"] == "pending"
        assert node.end(attempt, "preempted", cause="preempted", by_node=True).committed
        until(lambda: plane.job(running)["state"] == "pending")
        assert node.leave().committed
        node.incarnation = str(uuid.uuid4())
        assert node.register().committed
        assert {node.run().job, node.run().job} == {running, waiting}
        assert plane.job(running)["attempts"] == 2


def test_reputation_falls_with_a_loss_and_the_readings_reach_the_record(plane, monkeypatch):
    monkeypatch.setattr("broker.scheduler.duties.readings._ROUND_SECONDS", 0.2)
    with plane.scheduler():
        node = plane.node("bad")
        plane.redis.set(f"cyxwiz.telemetry.{node.id}", '{"cpu_percent": 12.5}')
        until(lambda: (plane.client.nodes()[0]["telemetry"] or {}).get("cpu_percent") == 12.5)
        plane.submit()
        node.start(node.take()[0])
        node.silence()
        until(lambda: state_of(plane, node) == "lost")
        [row] = plane.client.nodes()
        assert row["reputation"] == pytest.approx(0.8)
        assert row["up_seconds"] > 0


def test_a_new_node_gets_big_jobs_once_a_job_has_completed_there_or_others_are_full(plane):
    def tried():
        return {row["name"]: row["tried"] for row in plane.client.nodes()}

    with plane.scheduler():
        old = plane.node("old", gpus=4)
        plane.submit()
        old.run()
        new = plane.node("new", gpus=4)
        assert tried() == {"old": True, "new": False}
        jobs = [plane.submit(resources=Resources(gpus=2)) for _ in range(3)]
        assert [old.take()[0].job, old.take()[0].job] == jobs[:2]
        assignment, _ = new.take()
        assert assignment.job == jobs[2]
        new.start(assignment)
        assert new.end(assignment).committed
        assert tried() == {"old": True, "new": True}
    with plane.scheduler():
        until(lambda: all(row["state"] == "up" for row in plane.client.nodes()))
        plane.submit(resources=Resources(gpus=4))
        assert new.take()[0].attempt == 1


def test_a_job_that_started_while_nobody_led_is_not_taken_from_its_node(plane, monkeypatch):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        assignment, _ = node.take()
    node.start(assignment)
    # As after a minute.
    monkeypatch.setattr("broker.scheduler.duties.unstarted._LIMIT_SECONDS", 0.0)
    with plane.scheduler():
        until(lambda: plane.job(job_id)["state"] != "assigned")
        assert node.end(assignment).committed
        assert (plane.job(job_id)["state"], plane.job(job_id)["attempts"]) == ("completed", 1)


@pytest.mark.parametrize("leaders", [1, 2])
def test_a_start_whose_word_was_lost_is_known_by_its_nodes_beats(plane, monkeypatch, leaders):
    monkeypatch.setattr("broker.scheduler.duties.unstarted._PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr("broker.scheduler.duties.unstarted._LIMIT_SECONDS", 3.0)
    with ExitStack() as led:
        led.enter_context(plane.scheduler())
        node = plane.node()
        job_id = plane.submit()
        assignment, _ = node.take()
        if leaders == 2:
            led.pop_all().close()
            node.start(assignment)
            plane.redis.flushdb()
        node.start_unheard(assignment)
        if leaders == 2:
            led.enter_context(plane.scheduler())
        until(lambda: plane.job(job_id)["state"] != "assigned")
        node.start(assignment)  # and it comes after all
        assert node.end(assignment).committed
        assert plane.redis.llen(control_key(node.id)) == 0, "nobody told it to stop"
    states = [state for state, _ in plane.causes(job_id)]
    assert states == ["pending", "assigned", "running", "completed"]
    [attempt] = plane.job(job_id)["attempt_list"]
    assert (attempt["pid"], attempt["device"]) == (4711, "cpu")


@pytest.mark.parametrize("told", [False, True], ids=["tells of nothing", "tells that it has it"])
def test_a_message_that_got_lost_is_published_again_and_a_node_that_never_starts_it_loses_it(plane, monkeypatch, told):
    monkeypatch.setattr("broker.scheduler.duties.unstarted._PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr("broker.scheduler.duties.unstarted._LIMIT_SECONDS", 3.0)
    with plane.scheduler():
        node = plane.node("deaf")
        job_id = plane.submit()
        first, one = node.take()
        node.tokens = (first.token,) if told else None
        second, two = node.take()
        assert first == second
        assert one["properties"]["delivery_tag"] != two["properties"]["delivery_tag"]
        other = plane.node("hears")
        until(lambda: plane.job(job_id)["node"] == "hears" or plane.job(job_id)["attempts"] > 1)
        stop = node.told()
        assert stop.token == first.token
        assert other is not None
