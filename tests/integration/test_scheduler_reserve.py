"""Whoever waits for much at once does not starve behind small jobs that keep coming."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from tests.integration.control_plane import ControlPlane
from tests.integration.waiting import until


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("broker.scheduler.duties.reserve.Reserve.every_seconds", 0.02)


@pytest.fixture
def plane(broker_url, database_url, engine):
    plane = ControlPlane(broker_url, database_url, engine, reserve_after_seconds=0.0)
    yield plane
    plane.close()


def test_what_small_jobs_give_back_is_kept_for_the_big_one(plane):
    with plane.scheduler():
        node = plane.node(gpus=2, slots=4)
        first, second = (plane.submit(number, resources={"gpus": 1}) for number in (1, 2))
        places = {attempt.job: attempt for attempt, _ in (node.take(), node.take())}
        big = plane.submit(3, resources={"gpus": 2})
        until(lambda: "is kept for it" in str(plane.client.why(big)))
        small = plane.submit(4, resources={"gpus": 1})
        assert node.end(places[first]).committed
        assert f"kept for job {big}" in str(plane.client.why(small))
        assert plane.job(small)["state"] == "pending", "the GPU that is free is kept"
        assert node.end(places[second]).committed
        assert node.run().job == big
        assert node.run().job == small


def test_a_job_that_waits_is_told_about_when_it_starts(plane):
    with plane.scheduler():
        node = plane.node(gpus=1, slots=4)
        plane.submit(1, resources={"gpus": 1})
        assignment, _ = node.take()
        waits = plane.submit(2, resources={"gpus": 1})
        found = plane.client.why(waits).facts["estimate"]
        assert found == {"start": None, "basis": found["basis"]}
        assert "has no time limit" in found["basis"]
        node.start(assignment)
        assert node.end(assignment).committed
        assert node.take()[0].job == waits
        with plane.engine.begin() as tx:
            tx.execute(
                text("UPDATE attempts SET assigned_at = assigned_at - interval '1 hour' WHERE state = 'completed'")
            )
        told = plane.client.why(plane.submit(3, resources={"gpus": 1}))
        assert told.facts["estimate"]["basis"] == "the one attempt that has finished here, for 1 attempt there"
        assert "in 1 h" in str(told) or "in 59 min" in str(told)


def test_who_cannot_start_in_time_keeps_no_place(plane):
    with plane.scheduler():
        node = plane.node(gpus=2, slots=4)
        plane.submit(1, resources={"gpus": 1}, time_limit="2h")
        node.take()
        late = plane.submit(2, resources={"gpus": 2}, start_by="1h")
        until(lambda: "it is cancelled then" in str(plane.client.why(late)))
        assert "is kept for it" not in str(plane.client.why(late))
        small = plane.submit(3, resources={"gpus": 1})
        assert node.take()[0].job == small
        plane.client.cancel(late)
        late = plane.submit(4, resources={"gpus": 2}, start_by=2.0, priority="high")
        plane.wait_for(late, "cancelled")


def test_a_gangs_nodes_are_kept_one_by_one_as_small_jobs_give_them_back(plane):
    with plane.scheduler():
        nodes = [plane.node(name, gpus=1, slots=2) for name in ("one", "two", "three")]
        for number in range(3):
            plane.submit(number, resources={"gpus": 1})
        places = {node.name: node.take()[0] for node in nodes}
        gang = plane.submit(4, resources={"nodes": 2, "gpus": 1})
        until(lambda: "are kept for it" in str(plane.client.why(gang)))
        said = str(plane.client.why(gang))
        assert "It needs 2 nodes at the same time: 3 of 3 fit" in said
        small = plane.submit(5, resources={"gpus": 1})
        kept = [node for node in nodes if node.name in said.partition("Nodes ")[2].partition(" are kept")[0]]
        assert len(kept) == 2
        assert kept[0].end(places[kept[0].name]).committed
        until(lambda: "on 1 of these 2" in str(plane.client.why(gang)))
        assert plane.job(small)["state"] == "pending", "the node that is free is kept"
        assert kept[1].end(places[kept[1].name]).committed
        assert {node.take()[0].job for node in kept} == {gang}
        [other] = [node for node in nodes if node not in kept]
        assert other.end(places[other.name]).committed
        assert other.run().job == small
