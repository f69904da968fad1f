"""Nodes that are emptied, now or by a deadline."""

from __future__ import annotations

import pytest

from cyxwiz_tasks.errors import InvalidJob, InvalidSettings, NotFound
from tests.integration.waiting import until


def row(plane, node):
    return next(row for row in plane.client.nodes() if row["id"] == node.id)


def test_a_drained_node_gets_nothing_new_and_its_jobs_go_on_elsewhere(plane):
    with plane.scheduler():
        node = plane.node("old")
        running, assigned = plane.submit(1), plane.submit(2)
        first, second = node.take()[0], node.take()[0]
        node.start(first)
        plane.wait_for(running, "running")
        shown = plane.client.drain("old", reason="new disks")
        assert (shown["id"], shown["cordon"], shown["assigned"] + shown["running"]) == (node.id, "draining", 2)
        stops = {stop.token: stop for stop in (node.told(), node.told())}
        assert set(stops) == {first.token, second.token}
        stop = stops[first.token]
        assert (stop.outcome, stop.grace_seconds) == ("preempted", plane.settings.preempt_grace_seconds)
        assert "old is drained" in stop.reason
        waiting = plane.submit(3)
        for attempt in (first, second):
            assert node.end(attempt, "preempted", cause="preempted").committed
        until(lambda: [plane.job(id)["state"] for id in (running, assigned, waiting)] == 3 * ["pending"])
        other = plane.node("other")
        assert {other.run().job for _ in range(3)} == {running, assigned, waiting}
        assert row(plane, node)["cordon_reason"] == "new disks"
        assert plane.client.undrain(node.id)["cordon"] is None
        other.leave()
        last = plane.submit(4)
        assert node.run().job == last


def test_with_a_deadline_jobs_run_on_until_then_also_under_a_new_leader(plane):
    with plane.scheduler():
        node = plane.node("old")
        job_id = plane.submit()
        attempt, _ = node.take()
        node.start(attempt)
        plane.wait_for(job_id, "running")
        shown = plane.client.drain(node.id, deadline=4.0)
        assert 0 < shown["cordon_seconds_left"] <= 4.0
    with plane.scheduler():
        waiting = plane.submit()
        left = row(plane, node)["cordon_seconds_left"]
        stop = node.told()
        assert (stop.token, stop.outcome) == (attempt.token, "preempted")
        assert left > 0
        assert plane.job(waiting)["attempts"] == 0
        assert node.end(attempt, "preempted").committed


def test_without_an_end_jobs_are_left_alone(plane):
    with plane.scheduler():
        node = plane.node("old")
        job_id = plane.submit()
        attempt, _ = node.take()
        assert plane.client.drain("old", deadline=None)["cordon_until"] is None
        node.start(attempt)
        assert node.end(attempt).committed
        assert plane.job(job_id)["state"] == "completed"
        assert plane.redis.llen(f"cyxwiz.control.{node.id}") == 0
        assert plane.client.drain("old")["cordon_until"] is not None, "a second word counts"


def test_a_restart_of_the_node_does_not_end_its_drain(plane):
    with plane.scheduler():
        node = plane.node("old")
        plane.client.drain("old")
        node.leave()
        node.incarnation = "after"
        assert node.register().committed
        waiting = plane.submit()
        plane.client.why(waiting)
        assert plane.job(waiting)["attempts"] == 0
        assert row(plane, node)["cordon"] == "draining"


def test_nodes_that_are_not_there_and_names_of_several(plane):
    with plane.scheduler():
        with pytest.raises(NotFound, match="there is no node nowhere"):
            plane.client.drain("nowhere")
        plane.node("twin")
        plane.node("twin")
        with pytest.raises(InvalidSettings, match="2 nodes are called twin"):
            plane.client.drain("twin")
        with pytest.raises(InvalidJob, match="deadline"):
            plane.client.drain("twin", deadline="soon")
