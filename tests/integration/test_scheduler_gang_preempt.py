"""Gangs that take the places of others, and give theirs back: all or none."""

from __future__ import annotations

import pytest

from cyxwiz_tasks.protocol.headers import Assignment
from tests.integration.control_plane import ControlPlane
from tests.integration.fake_node import FakeNode
from tests.integration.waiting import until


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("broker.scheduler.duties.preempt.Preempt.every_seconds", 0.02)
    monkeypatch.setattr("broker.scheduler.duties.give_back.GiveBack.every_seconds", 0.02)


def busy(plane: ControlPlane, name: str, **options) -> tuple[FakeNode, Assignment]:
    """A node with one slot, and what runs there."""
    node = plane.node(name, slots=1)
    plane.submit(resources={"node": name}, **options)
    attempt, _ = node.take()
    node.start(attempt)
    return node, attempt


def gang_on(plane: ControlPlane, nodes: list[FakeNode], **options) -> list[tuple[FakeNode, Assignment]]:
    plane.submit(resources={"nodes": len(nodes)}, **options)
    gang = [(node, node.take()[0]) for node in nodes]
    for node, attempt in gang:
        node.start(attempt)
    return gang


def leaves(node: FakeNode, attempt: Assignment) -> None:
    """It is asked to, and does."""
    stop = node.told()
    assert (stop.token, stop.outcome) == (attempt.token, "preempted")
    assert node.end(attempt, "preempted", cause="preempted").committed


def test_a_critical_gang_takes_the_places_that_it_needs_and_what_is_free_is_kept_for_it_meanwhile(plane):
    with plane.scheduler():
        (one, first), (two, second) = busy(plane, "one"), busy(plane, "two", priority="high")
        three = plane.node("three", slots=1)
        urgent = plane.submit(3, resources={"nodes": 3}, priority="critical")
        leaves(one, first)
        small = plane.submit(4, resources={"node": "three"}, priority="high")
        assert "Nodes three, one, two are being cleared for it: on 1 of these 3" in str(plane.client.why(urgent))
        assert "where the place is kept for job" in str(plane.client.why(small))
        assert {plane.job(id)["state"] for id in (urgent, small)} == {"pending"}
        leaves(two, second)
        assert {node.run().job for node in (one, two, three)} == {urgent}
        assert plane.wait_for(urgent, "completed")["attempts"] == 1
        assert [one.run().job, two.run().job, three.run().job] == [first.job, second.job, small]
        assert not any(plane.redis.llen(f"cyxwiz.control.{node.id}") for node in (one, two, three))


def test_the_next_leader_clears_on_for_a_gang_where_the_last_one_stopped(plane):
    with plane.scheduler():
        (one, first), (two, second) = busy(plane, "one"), busy(plane, "two")
        other, kept = busy(plane, "other")
        three = plane.node("three", slots=1)
        urgent = plane.submit(4, resources={"nodes": 3, "exclude_nodes": ["other"]}, priority="critical")
        leaves(one, first)
        until(lambda: plane.job(first.job)["state"] == "pending")
        assert two.told().token == second.token
    with plane.scheduler():
        until(lambda: all(row["state"] == "up" for row in plane.client.nodes()))
        for _ in range(10):
            plane.client.why(urgent)
        small = plane.submit(5, resources={"node": "three"})
        assert {plane.job(id)["state"] for id in (urgent, small, first.job)} == {"pending"}, "both free nodes are kept"
        assert two.end(second, "preempted", cause="preempted").committed
        assert {node.run().job for node in (one, two, three)} == {urgent}
        assert plane.redis.llen(f"cyxwiz.control.{other.id}") == 0, "nobody else was asked for the same gang"
        assert other.end(kept).committed


def test_a_running_gang_gives_way_to_a_critical_one_as_a_whole_and_goes_on_later(plane):
    with plane.scheduler():
        nodes = [plane.node(name, slots=1) for name in ("one", "two")]
        three, kept = busy(plane, "three", priority="critical")
        running = gang_on(plane, nodes)
        urgent = plane.submit(9, resources={"nodes": 2}, priority="critical")
        for node, attempt in running:
            leaves(node, attempt)
        assert {node.run().job for node in nodes} == {urgent}
        assert {node.run().job for node in nodes} == {running[0][1].job}
        page = plane.wait_for(running[0][1].job, "completed")
        assert [attempt["state"] for attempt in page["attempt_list"]] == ["preempted", "completed"]
        assert plane.redis.llen(f"cyxwiz.control.{three.id}") == 0
        assert three.end(kept).committed


def test_for_a_critical_job_a_whole_gang_goes_also_under_the_next_leader(plane):
    with plane.scheduler():
        nodes = [plane.node(name, slots=1) for name in ("one", "two")]
        running = gang_on(plane, nodes)
        urgent = plane.submit(9, resources={"node": "two"}, priority="critical")
        for node, attempt in running:
            assert node.told().token == attempt.token
        one, two = running
        assert one[0].end(one[1], "preempted", cause="preempted").committed
    with plane.scheduler():
        small = plane.submit(10, resources={"node": "two"}, priority="high")
        assert two[0].end(two[1], "preempted", cause="preempted").committed
        assert [nodes[1].run().job, nodes[1].run().job] == [urgent, small]
        assert {node.run().job for node in nodes} == {one[1].job}


def test_a_gang_takes_nobodys_place_for_nothing(plane):
    with plane.scheduler():
        one, first = busy(plane, "one")
        two, second = busy(plane, "two", priority="critical")
        urgent = plane.submit(3, resources={"nodes": 2}, priority="critical")
        plane.submit(4, resources={"nodes": 3}, priority="critical")
        for _ in range(10):
            plane.client.why(urgent)
        assert plane.redis.llen(f"cyxwiz.control.{one.id}") == 0, "one place is not enough"
        assert two.end(second).committed
        leaves(one, first)
        assert {node.run().job for node in (one, two)} == {urgent}


def test_a_project_takes_back_with_a_gang_what_it_owns(plane):
    with plane.scheduler():
        nodes = [plane.node(name, slots=4, gpus=2) for name in ("one", "two")]
        guests = {}
        for number in range(4):
            plane.submit(number, project="guest", resources={"gpus": 1, "node": ("one", "two")[number % 2]})
            attempt, _ = nodes[number % 2].take()
            nodes[number % 2].start(attempt)
            guests[attempt.token] = nodes[number % 2], attempt
        plane.client.set_quota("lab", gpus=2)
        more = plane.submit(8, project="lab", resources={"gpus": 2, "nodes": 2})
        own = plane.submit(9, project="lab", resources={"gpus": 1, "nodes": 2})
        asked = [guests[node.told().token] for node in nodes]
        for node, attempt in asked:
            assert node.end(attempt, "preempted", cause="preempted").committed
        assert {node.take()[0].job for node in nodes} == {own}
        assert not any(plane.redis.llen(f"cyxwiz.control.{node.id}") for node in nodes), "two places were enough"
        assert plane.job(more)["state"] == "pending", "it wants more than its project owns"


def test_a_gang_that_was_preempted_often_enough_is_left_alone(broker_url, database_url, engine):
    once = ControlPlane(broker_url, database_url, engine, preempt_limit=1)
    with once.scheduler():
        nodes = [once.node(name, slots=1) for name in ("one", "two")]
        running = gang_on(once, nodes)
        once.submit(resources={"nodes": 2}, priority="critical")
        for node, attempt in running:
            leaves(node, attempt)
        assert len({node.run().job for node in nodes}) == 1
        again = [(node, node.take()[0]) for node in nodes]
        assert {attempt.attempt for _, attempt in again} == {2}
        patient = once.submit(resources={"nodes": 2}, priority="critical")
        for _ in range(10):
            once.client.why(patient)
        assert not any(once.redis.llen(f"cyxwiz.control.{node.id}") for node in nodes)
        for node, attempt in again:
            assert node.end(attempt).committed
        assert {node.run().job for node in nodes} == {patient}
    once.close()
