"""Small jobs that write checkpoints move together, so that a bigger one has its place at once."""

from __future__ import annotations

import pytest

from tests.integration.control_plane import ControlPlane
from tests.integration.waiting import until


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("broker.scheduler.duties.reserve.Reserve.every_seconds", 0.02)
    monkeypatch.setattr("broker.scheduler.duties.consolidate.Consolidate.every_seconds", 0.02)
    monkeypatch.setattr("broker.scheduler.duties.reconcile.Reconcile.every_seconds", 0.05)


@pytest.fixture
def open_plane(broker_url, database_url, engine):
    """Makes one with settings; it is closed at the end."""
    made: list[ControlPlane] = []

    def make(**settings):
        made.append(ControlPlane(broker_url, database_url, engine, reserve_after_seconds=0.0, **settings))
        return made[-1]

    yield make
    for plane in made:
        plane.close()


def test_a_small_job_moves_and_the_big_one_has_its_place(open_plane):
    plane = open_plane()
    with plane.scheduler():
        one, two = (plane.node(name, gpus=2, slots=4, checkpoint_place="here") for name in ("one", "two"))
        stays = plane.submit(1, resources={"gpus": 1, "node": "two"})
        small = plane.submit(2, resources={"gpus": 1, "prefer": {"node=one": 1}})
        kept, moving = two.take()[0], one.take()[0]
        assert (kept.job, moving.job) == (stays, small)
        for node, attempt in ((one, moving), (two, kept)):
            node.start(attempt)
            node.tokens = (attempt.token,)
        big = plane.submit(3, resources={"gpus": 2}, time_limit="1h")
        until(lambda: "is kept for it" in str(plane.client.why(big)))
        assert plane.redis.llen(f"cyxwiz.control.{one.id}") == 0, "it has told of no checkpoint"
        one.checkpoint_age_seconds = {moving.token: 1.0}
        stop = one.told()
        assert (stop.token, stop.outcome) == (moving.token, "preempted")
        assert big in stop.reason
        assert stop.grace_seconds == plane.settings.preempt_grace_seconds
        assert one.end(moving, "preempted", cause="preempted").committed
        assert one.take()[0].job == big
        assert two.take()[0].job == small
        assert plane.redis.llen(f"cyxwiz.control.{two.id}") == 0, "nobody else was asked"


def test_nobody_moves_where_that_is_switched_off(open_plane):
    plane = open_plane(consolidate_limit=0)
    with plane.scheduler():
        one, _ = (plane.node(name, gpus=2, slots=4, checkpoint_place="here") for name in ("one", "two"))
        plane.submit(1, resources={"gpus": 1, "node": "two"})
        plane.submit(2, resources={"gpus": 1, "prefer": {"node=one": 1}})
        attempt, _ = one.take()
        one.start(attempt)
        one.tokens, one.checkpoint_age_seconds = (attempt.token,), {attempt.token: 1.0}
        until(lambda: "Its last checkpoint was" in str(plane.client.why(attempt.job)))
        big = plane.submit(3, resources={"gpus": 2})
        until(lambda: "is kept for it" in str(plane.client.why(big)))
        for _ in range(10):
            plane.client.why(big)
        assert plane.redis.llen(f"cyxwiz.control.{one.id}") == 0
