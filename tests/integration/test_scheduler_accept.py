"""Nodes that take the jobs of some people alone."""

from __future__ import annotations

from typing import Any

from cyxwiz_tasks.broker_connection import connect
from tests.integration.fake_node import FakeNode


def test_a_node_gets_the_jobs_that_its_own_condition_lets_in(plane: Any) -> None:
    with plane.scheduler():
        theirs = plane.node("theirs", accept='owner in ["lab-a", "lab-b"] and priority >= normal')
        guest = plane.submit(owner="guest")
        low = plane.submit(owner="lab-a", priority="low")
        taken = plane.submit(owner="lab-b")
        assert theirs.run().job == taken
        text = str(plane.client.why(guest))
        assert "theirs does not take such a job of this owner: it takes owner in" in text
        assert plane.client.why(low).facts["failed"] == {"accept": 1}
        assert plane.client.plan({}, owner="lab-a").facts["free"] == 1
        assert plane.client.plan({}, owner="guest").facts["free"] == 0
    # Another leader reads the condition in the record.
    with plane.scheduler():
        everybodys = plane.node("everybody's")
        assert {everybodys.run().job, everybodys.run().job} == {guest, low}
        assert theirs.client.llen(f"node.{theirs.id}") == 0


def test_a_node_whose_condition_cannot_be_read_is_refused_with_the_reason(plane: Any) -> None:
    with plane.scheduler():
        node = FakeNode(connect(plane.broker_url), "odd", accept="owner == ann")
        plane.nodes.append(node)
        reply = node.register()
        assert not reply.committed
        assert reply.message.startswith('accept: at character 10: "ann" is not known')
