"""Nodes with repeated faults get no work for a while, and the jobs' own faults put no node away."""

from __future__ import annotations

import pytest

from tests.integration.waiting import until

CRASH = {"outcome": "failed", "cause": "crashed", "message": "SIGSEGV"}
FAULT = {"outcome": "failed", "cause": "hardware", "message": "Xid 79"}


@pytest.fixture
def plane(broker_url, database_url, engine):
    from tests.integration.control_plane import ControlPlane

    plane = ControlPlane(broker_url, database_url, engine, quarantine_seconds=3600.0)
    yield plane
    plane.close()
    assert plane.broken_rules() == {}


def shown(plane, node):
    return next(row for row in plane.client.nodes() if row["id"] == node.id)


def one(plane, node, **end):
    """A job of its own that ends so on a node, and is cancelled if it waits again."""
    job_id = plane.submit(resources={"node": node.name})
    assignment, _ = node.take()
    assert assignment.job == job_id
    node.start(assignment)
    assert node.end(assignment, **end or {"result": 1}).committed
    plane.client.cancel(job_id)
    if plane.job(job_id)["state"] == "assigned":
        # The pause before its next try was so short that it was placed again before it was cancelled.
        again, _ = node.take()
        assert again.job == job_id
        assert node.end(again, "cancelled").committed
        plane.wait_for(job_id, "cancelled")


def busy_neighbour(plane):
    """A node in good standing with no slot left: what it could run waits for it, and no other is a last resort."""
    busy = plane.node("busy", slots=1)
    job_id = plane.submit(resources={"node": "busy"})
    busy.start(busy.take()[0])
    plane.wait_for(job_id, "running")


def expire_quarantine(plane, node):
    from sqlalchemy import text

    with plane.engine.begin() as tx:
        values = {"id": node.id}
        tx.execute(text("UPDATE nodes SET cordon_until = statement_timestamp() WHERE id = CAST(:id AS uuid)"), values)
    until(lambda: shown(plane, node)["cordon"] is None)


def test_faults_of_different_jobs_put_a_node_into_quarantine_for_longer_each_time(plane):
    with plane.scheduler():
        bad = plane.node("bad")
        busy_neighbour(plane)
        one(plane, bad, **CRASH)
        one(plane, bad)
        one(plane, bad, **CRASH)
        one(plane, bad, **FAULT)
        assert (shown(plane, bad)["cordon"], shown(plane, bad)["faults"]) == (None, 2)
        one(plane, bad, **CRASH)
        until(lambda: shown(plane, bad)["state"] == "up")
        row = shown(plane, bad)
        assert (row["state"], row["cordon"]) == ("up", "quarantined")
        assert 3500 < row["cordon_seconds_left"] <= 3600
        assert "3 without a success" in row["cordon_reason"]
        waiting = plane.submit()
        assert "in quarantine after repeated faults, no new work there" in str(plane.client.why(waiting))
        expire_quarantine(plane, bad)
        assignment, _ = bad.take()
        assert assignment.job == waiting
        bad.start(assignment)
        bad.end(assignment, **FAULT)
        row = shown(plane, bad)
        assert (row["cordon"], row["quarantines"]) == ("quarantined", 2)
        assert 7100 < row["cordon_seconds_left"] <= 7200
    with plane.scheduler():
        until(lambda: shown(plane, bad)["cordon"] == "quarantined")
        assert plane.job(waiting)["state"] == "pending", "a new leader knows"
        expire_quarantine(plane, bad)
        assert bad.run().job == waiting
        row = shown(plane, bad)
        assert (row["faults"], row["quarantines"]) == (0, 0), "a success clears it"


def test_a_node_that_was_restarted_is_still_in_quarantine_and_a_person_ends_it(plane):
    with plane.scheduler():
        bad = plane.node("bad")
        busy_neighbour(plane)
        for _ in range(3):
            one(plane, bad, **FAULT)
        bad.leave()
        bad.register()
        waiting = plane.submit()
        until(lambda: (shown(plane, bad)["state"], shown(plane, bad)["cordon"]) == ("up", "quarantined"))
        assert plane.job(waiting)["state"] == "pending"
        plane.client.undrain("bad")
        assert bad.run().job == waiting
        assert shown(plane, bad)["quarantines"] == 0


def test_one_poison_job_costs_no_node_its_work(plane):
    with plane.scheduler():
        nodes = [plane.node(name) for name in ("a", "b", "c")]
        job_id = plane.submit(max_retries=9)
        for _ in range(3):
            plane.wait_for(job_id, "assigned")
            node = next(node for node in nodes if node.id == plane.job(job_id)["node_id"])
            assignment, _ = node.take()
            node.start(assignment)
            node.end(assignment, **CRASH)
        plane.wait_for(job_id, "held")
        assert sum(row["faults"] for row in plane.client.nodes()) == 1


def test_a_broken_program_is_blamed_after_its_first_node(plane):
    with plane.scheduler():
        first, second = plane.node("first"), plane.node("second")
        for _ in range(3):
            one(plane, first, **CRASH)
        assert shown(plane, first)["cordon"] == "quarantined"
        for _ in range(5):
            one(plane, second, **CRASH)
        assert (shown(plane, second)["cordon"], shown(plane, second)["faults"]) == (None, 0)


def test_a_node_that_breaks_what_others_can_run_is_blamed(plane):
    with plane.scheduler():
        good, bad = plane.node("good"), plane.node("bad")
        one(plane, good, **CRASH)
        one(plane, good)
        for _ in range(3):
            one(plane, bad, **CRASH)
        assert shown(plane, bad)["cordon"] == "quarantined"
        assert shown(plane, good)["cordon"] is None


def test_a_node_that_flaps_is_put_away(plane):
    with plane.scheduler():
        bad = plane.node("flaps")
        busy_neighbour(plane)
        job_id = plane.submit()
        for _ in range(3):
            bad.take()
            bad.silence()
            until(lambda: shown(plane, bad)["state"] == "lost")
            bad.register()
        assert shown(plane, bad)["cordon"] == "quarantined"
        assert plane.job(job_id)["state"] == "pending"


def test_an_agent_that_died_is_one_fault_and_a_node_that_cannot_run_jobs_one_for_each(plane, monkeypatch):
    lost = {"outcome": "failed", "cause": "node_lost", "message": "the agent died", "untold": True}
    with plane.scheduler():
        bad = plane.node("bad", slots=8)
        ids = [plane.submit(number) for number in range(4)]
        places = [bad.take()[0] for _ in ids]
        monkeypatch.setattr("broker.scheduler.attempt_ends._GIVEN_BACK_SECONDS", 0.0)
        for place in places:
            bad.end(place, **lost)
        assert (shown(plane, bad)["cordon"], shown(plane, bad)["faults"]) == (None, 1)
        monkeypatch.undo()
        for place in [bad.take()[0] for _ in ids[:2]]:
            assert not bad.end(place, **lost).final
        assert shown(plane, bad)["cordon"] == "quarantined"
        assert {plane.job(job_id)["state"] for job_id in ids} <= {"pending", "assigned"}


def test_a_node_in_quarantine_is_a_last_resort_and_a_success_clears_it(plane):
    with plane.scheduler():
        bad, good = plane.node("bad"), plane.node("good", slots=1)
        for _ in range(3):
            one(plane, bad, **CRASH)
        first = plane.submit()
        good.start(good.take()[0])
        second, third = plane.submit(), plane.submit()
        assert plane.job(second)["state"] == "pending", "it could run on the other node"
        good.die()
        assignment, _ = bad.take()
        assert (assignment.job, plane.job(second)["state"]) == (first, "pending"), "one at a time"
        assert "a last resort: one job at a time there" in str(plane.client.why(third))
        assert "in quarantine after repeated faults, and no other node could run" in str(plane.client.why(first))
        bad.start(assignment)
        assert bad.end(assignment, result=1).committed
        row = shown(plane, bad)
        assert (row["cordon"], row["faults"], row["quarantines"]) == (None, 0, 0)
        assert {bad.run().job, bad.run().job} == {second, third}
