"""Nodes with hours of their own, and jobs that prefer one node to another."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from broker.scheduler import registering
from broker.scheduler.duties import open_nodes
from cyxwiz_tasks.broker_connection import connect
from tests.integration.fake_node import FakeNode
from tests.integration.waiting import until


class TimeOfDay:
    """`time` with a time of day that a test sets; everything else is real."""

    def __init__(self, text: str) -> None:
        self.seconds = datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()

    def time(self) -> float:
        return self.seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def test_a_node_gets_new_work_within_its_hours_alone(plane: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # A Monday; in Berlin it is two hours later.
    clock = TimeOfDay("2026-06-01T15:59:30")
    for module in (open_nodes, registering):
        monkeypatch.setattr(module, "time", clock)
    with plane.scheduler():
        node = plane.node("evenings", hours="18:00-20:00", timezone="Europe/Berlin")
        first = plane.submit()
        text = str(plane.client.why(first))
        assert "1 node of 1 fits (evenings), none with room now: 1 outside its hours, evenings opens Mon 18:00" in text
        clock.seconds += 60
        running, _ = node.take()
        node.start(running)
        clock.seconds += 2 * 3600
        until(lambda: "evenings opens" in str(plane.client.plan({})))
        # What runs is left alone, and comes to its end.
        assert node.end(running, result="late").committed
        assert plane.job(first)["result"] == "late"
        waits = plane.submit()
        assert "Tue 18:00 (Europe/Berlin)" in str(plane.client.why(waits))
        always = plane.node("always")
        assert always.run().job == waits


def test_a_node_whose_hours_cannot_be_read_is_refused_with_the_reason(plane: Any) -> None:
    with plane.scheduler():
        node = FakeNode(connect(plane.broker_url), "odd", hours="whenever", timezone="UTC")
        plane.nodes.append(node)
        reply = node.register()
        assert not reply.committed
        assert reply.message.startswith('hours: "whenever" is no day: write Mon')


def test_a_job_goes_to_the_node_that_it_prefers_and_the_record_says_so(plane: Any) -> None:
    with plane.scheduler():
        plane.node("plain")
        liked = plane.node("liked", slots=1, region="eu-west", labels={"nvlink": True})
        wish = {"prefer": {"labels.nvlink=true": 2, "region=eu-*": 1, "os=Windows": 1}}
        job_id = plane.submit(resources=wish)
        liked.run()
        scores = plane.job(job_id)["attempt_list"][0]["scores"]
        assert scores["parts"]["preferred"] == 0.75
        assert scores["next"] == [["plain", pytest.approx(scores["score"] - 0.75, abs=0.001)]]
