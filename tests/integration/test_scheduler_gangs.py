"""Jobs on several nodes at once: all members or none, one state, one result, one try."""

from __future__ import annotations

import base64
import json

import pytest
from sqlalchemy import text

from cyxwiz_tasks.protocol.headers import Assignment
from tests.integration.control_plane import ControlPlane
from tests.integration.fake_node import FakeNode
from tests.integration.waiting import until

Gang = list[tuple[FakeNode, Assignment]]


def three(plane: ControlPlane, **values) -> list[FakeNode]:
    return [plane.node(name, slots=1, **values) for name in ("one", "two", "three")]


def taken(nodes: list[FakeNode], start: bool = True) -> Gang:
    """What came to each of these nodes, by rank."""
    gang = sorted(((node, node.take()[0]) for node in nodes), key=lambda member: member[1].gang.rank)
    for node, attempt in gang if start else ():
        node.start(attempt)
    return gang


def members(plane: ControlPlane) -> list[tuple]:
    with plane.engine.connect() as tx:
        sql = "SELECT lead, rank, started_at IS NOT NULL, ended_at IS NOT NULL FROM gang_members ORDER BY lead, rank"
        return [tuple(row) for row in tx.execute(text(sql))]


def test_all_members_are_placed_at_once_and_the_result_is_that_of_rank_0(plane):
    with plane.scheduler():
        nodes = three(plane)
        job_id = plane.submit(resources={"nodes": 3})
        gang = taken(nodes)
        assert [attempt.gang.rank for _, attempt in gang] == [0, 1, 2]
        tokens = [attempt.token for _, attempt in gang]
        assert len(set(tokens)) == 3
        assert {attempt.gang.token for _, attempt in gang} == {tokens[0]}
        assert {attempt.gang.nodes for _, attempt in gang} == {tuple(node.name for node, _ in gang)}
        assert {(attempt.job, attempt.attempt) for _, attempt in gang} == {(job_id, 1)}
        plane.wait_for(job_id, "running")
        for node, attempt in gang[:2]:
            reply = node.end(attempt, result=f"of {attempt.gang.rank}")
            assert (reply.committed, reply.final) == (True, False)
            assert node.end(attempt, result="again").committed, "said again, it does no harm"
        assert plane.job(job_id)["state"] == "running"
        node, attempt = gang[2]
        assert node.end(attempt).committed
        page = plane.job(job_id)
        assert (page["state"], page["result"], page["attempts"]) == ("completed", "of 0", 1)
        assert plane.app.AsyncResult(job_id).get(timeout=5) == "of 0"
        assert [(one["rank"], one["outcome"]) for one in page["members"]] == [(rank, "completed") for rank in range(3)]
        assert plane.submit(2, resources={"nodes": 3})
        assert {attempt.attempt for _, attempt in taken(nodes)} == {1}, "all places are free again"


def test_a_gang_that_does_not_fit_waits_as_one_and_takes_nothing(plane):
    with plane.scheduler():
        one, two, _ = three(plane)
        busy = plane.submit(resources={"node": "three"})
        gang = plane.submit(2, resources={"nodes": 3})
        small = plane.submit(3, resources={"node": "one"})
        assert one.run().job == small
        assert plane.job(gang)["state"] == "pending"
        assert plane.job(busy)["state"] != "pending"
        nodes = [one, two, plane.node("four", slots=1)]
        assert {attempt.job for _, attempt in taken(nodes)} == {gang}


def test_only_rank_0_has_what_waits_for_the_job_in_celery(plane):
    with plane.scheduler():
        nodes = three(plane)
        call = plane.signature(1) | plane.signature(2)
        call.tasks[0].options["headers"] = {"cyxwiz": {"version": 1, "resources": {"nodes": 3}}}
        call.apply_async()
        messages = [message for _, message in (node.take() for node in nodes)]
        by_rank = sorted(messages, key=lambda message: message["headers"]["cyxwiz_assignment"]["gang"]["rank"])
        embedded = [json.loads(base64.b64decode(message["body"]))[2] for message in by_rank]
        assert embedded[0]["chain"]
        assert embedded[1:] == [{}, {}]
        assert [bool(message["headers"].get("ignore_result")) for message in by_rank] == [False, True, True]


def test_a_member_that_dies_ends_the_others_and_the_gang_is_tried_again_as_a_whole(plane):
    with plane.scheduler():
        nodes = three(plane)
        job_id = plane.submit(resources={"nodes": 3}, max_retries=1)
        gang = taken(nodes)
        # The others fail because it died, and one of them is heard first.
        assert gang[0][0].end(gang[0][1], "failed", cause="error", message="peer gone").committed
        assert gang[2][0].end(gang[2][1], "failed", cause="crashed", message="SIGKILL", exit_code=-9).committed
        stop = gang[1][0].told()
        assert (stop.token, stop.outcome) == (gang[1][1].token, "preempted")
        assert stop.grace_seconds == plane.settings.stop_grace_seconds
        assert plane.job(job_id)["state"] == "running", "its last process has not ended"
        assert gang[1][0].end(gang[1][1], "preempted", cause="preempted").committed
        again = taken(nodes)
        assert {(attempt.job, attempt.attempt) for _, attempt in again} == {(job_id, 2)}
        first, second = plane.job(job_id)["attempt_list"]
        assert (first["state"], first["cause"]) == ("failed", "crashed")
        assert first["message"].startswith(f"rank 2 of 3, on node {gang[2][0].name}: SIGKILL")
        assert second["state"] in ("assigned", "running")
        assert not gang[1][0].end(gang[1][1]).committed, "of the first try"
        for node, attempt in again:
            assert node.end(attempt, "failed", cause="error", message="no").committed
        assert plane.wait_for(job_id, "failed")["cause"] == "error"
        assert plane.celery_state(job_id) == "FAILURE"


def test_a_node_that_is_lost_ends_its_gang(plane):
    with plane.scheduler():
        nodes = three(plane)
        job_id = plane.submit(resources={"nodes": 3})
        gang = taken(nodes)
        gang[1][0].die()
        for node, attempt in (gang[0], gang[2]):
            assert node.told().token == attempt.token
            assert node.end(attempt, "preempted").committed
        until(lambda: plane.job(job_id)["state"] == "pending")
        assert plane.job(job_id)["attempt_list"][0]["cause"] == "node_lost"
        left = [gang[0][0], gang[2][0], plane.node("new", slots=1)]
        assert {attempt.attempt for _, attempt in taken(left)} == {2}


def test_a_node_that_stops_ends_its_gang_and_costs_no_try_although_the_others_fail_for_it(plane):
    with plane.scheduler():
        nodes = three(plane)
        job_id = plane.submit(resources={"nodes": 3})
        gang = taken(nodes)
        assert gang[0][0].end(gang[0][1], "failed", cause="error", message="peer gone").committed
        assert gang[1][0].end(gang[1][1], "preempted", cause="preempted", by_node=True).committed
    with plane.scheduler():
        assert gang[2][0].end(gang[2][1], "preempted", cause="preempted").committed
        until(lambda: plane.job(job_id)["attempts"] == 2)
        assert plane.job(job_id)["attempt_list"][0]["cause"] == "preempted"


def test_who_had_to_follow_another_explains_nothing_also_under_the_next_leader(plane):
    with plane.scheduler():
        nodes = three(plane)
        job_id = plane.submit(resources={"nodes": 3})
        gang = taken(nodes)
        assert gang[0][0].end(gang[0][1], "failed", cause="error", message="no").committed
        gang[1][0].told()
        assert gang[1][0].end(gang[1][1], "preempted", cause="preempted").committed
    with plane.scheduler():
        assert gang[2][0].end(gang[2][1], "preempted", cause="preempted").committed
        assert plane.wait_for(job_id, "failed")["message"].startswith("rank 0 of 3")


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_gang_that_was_lost_before_any_member_began_took_no_node_down(plane, has_begun):
    plane.settings = plane.settings.model_copy(update={"poison_limit": 1})
    with plane.scheduler():
        nodes = three(plane)
        job_id = plane.submit(resources={"nodes": 3})
        gang = taken(nodes, start=False)
        if has_begun:
            gang[1][0].start(gang[1][1])
        assert gang[2][0].leave().committed
        for node, attempt in gang[:2]:
            assert node.end(attempt, "preempted").committed
        assert plane.wait_for(job_id, "held" if has_begun else "pending")["cause"] == "node_lost"


def test_a_node_that_went_after_its_member_had_completed_is_no_loss(plane):
    with plane.scheduler():
        nodes = three(plane)
        job_id = plane.submit(resources={"nodes": 3})
        gang = taken(nodes)
        assert gang[1][0].end(gang[1][1]).committed
        assert gang[1][0].leave().committed
        for node, attempt in (gang[0], gang[2]):
            assert node.end(attempt, result=1).committed
        assert plane.wait_for(job_id, "completed")["attempts"] == 1


def test_a_cancellation_ends_all_members(plane):
    with plane.scheduler():
        nodes = three(plane)
        job_id = plane.submit(resources={"nodes": 3})
        gang = taken(nodes)
        plane.client.cancel(job_id)
        for node, attempt in gang:
            stop = node.told()
            assert (stop.token, stop.outcome) == (attempt.token, "cancelled")
            assert node.end(attempt, "cancelled").committed
        assert plane.wait_for(job_id, "cancelled")["attempts"] == 1
        assert plane.celery_state(job_id) == "REVOKED"


def test_a_drained_node_makes_the_whole_gang_give_its_places_back_once(plane):
    with plane.scheduler():
        nodes = three(plane)
        job_id = plane.submit(resources={"nodes": 3})
        gang = taken(nodes)
        plane.client.drain(gang[1][0].name)
        for node, attempt in gang:
            stop = node.told()
            assert (stop.token, stop.grace_seconds) == (attempt.token, plane.settings.preempt_grace_seconds)
        # One is gone before another has heard of it, and that one fails for it.
        assert gang[1][0].end(gang[1][1], "preempted", cause="preempted").committed
        assert gang[0][0].end(gang[0][1], "failed", cause="error", message="peer gone").committed
        assert gang[2][0].end(gang[2][1], "preempted", cause="preempted").committed
        until(lambda: plane.job(job_id)["state"] == "pending")
        assert [attempt["state"] for attempt in plane.job(job_id)["attempt_list"]] == ["preempted"]


def test_the_next_leader_goes_on_with_a_gang_that_is_half_over(plane, monkeypatch):
    monkeypatch.setattr("broker.scheduler.duties.reconcile.Reconcile.every_seconds", 0.15)
    with plane.scheduler():
        nodes = three(plane)
        job_id = plane.submit(resources={"nodes": 3})
        gang = taken(nodes)
        plane.wait_for(job_id, "running")
        assert gang[0][0].end(gang[0][1], result="kept").committed
    with plane.scheduler():
        assert gang[1][0].end(gang[1][1]).committed
        assert gang[0][0].end(gang[0][1], result="said again").committed
        assert plane.job(job_id)["state"] == "running"
    with plane.scheduler():
        assert gang[2][0].end(gang[2][1]).committed
        assert plane.wait_for(job_id, "completed")["result"] == "kept"
        until(lambda: plane.celery_state(job_id) == "SUCCESS")


def test_the_next_leader_tells_those_that_must_end_with_another(plane, monkeypatch):
    monkeypatch.setattr("broker.scheduler.duties.reconcile.Reconcile.every_seconds", 0.15)
    with plane.scheduler():
        nodes = three(plane)
        plane.submit(resources={"nodes": 3})
        gang = taken(nodes)
        assert gang[0][0].end(gang[0][1], "failed", cause="error", message="no").committed
        for node, _ in gang[1:]:
            node.told()  # and it is lost on the way
    with plane.scheduler():
        for node, attempt in gang[1:]:
            node.tokens = (attempt.token,)
        for node, attempt in gang[1:]:
            assert node.told().token == attempt.token
            assert node.end(attempt, "preempted").committed
        plane.wait_for(gang[0][1].job, "failed")


def test_a_member_whose_message_was_lost_gets_it_again(plane, monkeypatch):
    monkeypatch.setattr("broker.scheduler.duties.unstarted._PATIENCE_SECONDS", 0.2)
    with plane.scheduler():
        nodes = three(plane)
        plane.submit(resources={"nodes": 3})
        first = taken(nodes, start=False)
        for node, attempt in first[:2]:
            node.start(attempt)
        again, _ = first[2][0].take()
        assert (again.token, again.gang) == (first[2][1].token, first[2][1].gang)


@pytest.mark.parametrize("leader_changes", [False, True])
def test_what_a_gang_holds_counts_for_its_owner_and_on_all_nodes(plane, leader_changes):
    with plane.scheduler():
        nodes = three(plane, gpus=2)
        plane.submit(resources={"nodes": 3, "gpus": 2}, owner="ann")
        taken(nodes)
        before = present(plane, "ann")
    if leader_changes:
        with plane.scheduler():
            assert present(plane, "ann") == before
    assert before == 1.0, "all GPUs there are"


def present(plane: ControlPlane, owner: str) -> float:
    return next(row["present"] for row in plane.client.usage() if row["owner"] == owner)
