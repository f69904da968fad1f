"""Rows that a scheduler cannot read, as one of another release may have written them: each is set aside alone."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import text

from cyxwiz_tasks.broker_connection import connect
from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.protocol.names import BEATS, HEADER, INBOX, telemetry_key
from tests.integration.fake_node import FakeNode
from tests.integration.waiting import until

BAD = '{"labels":{"rack":NaN}}'


def change(plane, sql, **values):
    with plane.engine.begin() as tx:
        assert tx.execute(text(sql), values).rowcount == 1


def two_running(plane):
    """A node and the two jobs that run there."""
    node = plane.node(slots=2)
    plane.submit(1), plane.submit(2)
    first, second = (node.take()[0] for _ in range(2))
    for assignment in (first, second):
        node.start(assignment)
        plane.wait_for(assignment.job, "running")
    return node, first, second


def test_a_waiting_job_that_cannot_be_read_is_held_with_its_story_and_all_others_go_on(plane):
    with plane.scheduler():
        bad, first, other = plane.submit(1), plane.submit(2), plane.submit(3)
        after = plane.submit(4, after=first)
    change(plane, "UPDATE jobs SET shape = :shape WHERE id = :id", shape=BAD, id=bad)
    change(plane, "UPDATE jobs SET shape = :shape WHERE id = :id", shape=BAD, id=after)
    with plane.scheduler():
        node = plane.node()
        assert {node.run().job, node.run().job} == {first, other}
        job = plane.wait_for(bad, "held")
        assert 'the value of "rack" is nan' in job["message"]
        assert "held until somebody releases it: this scheduler cannot read" in str(plane.client.why(bad))
        assert plane.causes(bad) == [("pending", None), ("held", "error")]
        with pytest.raises(InvalidJob, match="cannot read"):
            plane.client.release(bad)
        assert plane.job(bad)["state"] == "held"
        for job_id in (bad, after):
            change(plane, "UPDATE jobs SET shape = '{}' WHERE id = :id", id=plane.wait_for(job_id, "held")["id"])
            plane.client.release(job_id)
            assert node.run().job == job_id
    assert plane.broken_rules() == {}


def test_a_held_job_comes_after_another_still_when_it_is_released(plane):
    with plane.scheduler():
        first = plane.submit(1)
        after = plane.submit(2, after=first)
    change(plane, "UPDATE jobs SET shape = :shape WHERE id = :id", shape=BAD, id=after)
    with plane.scheduler():
        plane.wait_for(after, "held")
    change(plane, "UPDATE jobs SET shape = '{}' WHERE id = :id", id=after)
    with plane.scheduler():
        plane.client.release(after)
        node = plane.node()
        assert [node.run().job, node.run().job] == [first, after]


def test_an_attempt_of_a_job_that_cannot_be_read_goes_on_and_is_not_placed_again(plane):
    with plane.scheduler():
        node, ends, is_lost = two_running(plane)
    for assignment in (ends, is_lost):
        change(plane, "UPDATE jobs SET resources = '{\"flux\": 1}' WHERE id = :id", id=assignment.job)
    with plane.scheduler():
        assert node.end(ends).committed
        assert node.end(is_lost, "failed", cause="hardware", message="Xid 79").committed
        assert plane.job(ends.job)["state"] == "completed"
        assert "resources.flux" in plane.wait_for(is_lost.job, "held")["message"]
        plane.submit(3)
        assert node.run().job not in (ends.job, is_lost.job)
    assert plane.broken_rules() == {}


def test_a_node_that_cannot_be_read_is_lost_until_it_registers_and_what_runs_there_goes_on(plane):
    plane.settings = plane.settings.model_copy(update={"lease_seconds": 10.0})
    with plane.scheduler():
        node = plane.node("odd", slots=1)
        running = plane.submit(1)
        assignment = node.take()[0]
        node.start(assignment)
        plane.wait_for(running, "running")
    odd = '{"cpu_cores": 0.5}'
    change(plane, "UPDATE nodes SET capability = capability || CAST(:odd AS jsonb) WHERE id = :id", odd=odd, id=node.id)
    with plane.scheduler():
        until(lambda: [row["state"] for row in plane.client.nodes()] == ["lost"])
        told = plane.client.requests.query("events", node=node.id)[-1]
        assert "cpu_cores: must be a whole number" in told["detail"]["message"]
        fine = plane.node("fine")
        job_id = plane.submit(2)
        assert fine.run().job == job_id
        assert node.register((assignment.token,), beat=False).committed
        fine.leave()
        waits = plane.submit(3)
        assert plane.job(waits)["state"] == "pending"
        assert node.end(assignment).committed
        assert node.run().job == waits
    assert plane.broken_rules() == {}


def test_a_job_whose_message_is_damaged_is_held_when_it_would_be_placed(plane):
    with plane.scheduler():
        bad, other = plane.submit(1), plane.submit(2)
        change(plane, "UPDATE jobs SET envelope = '{\"headers\": 1}' WHERE id = :id", id=bad)
        assert plane.node().run().job == other
        assert "its Celery message is damaged" in plane.wait_for(bad, "held")["message"]
        assert plane.client.cancel(bad)
    assert plane.broken_rules() == {}


def test_a_header_that_cannot_be_read_keeps_no_node_from_being_given_up(plane):
    with plane.scheduler():
        node, bad, other = two_running(plane)
        header = '{"headers": {"cyxwiz": {"max_retries": "often"}}, "body": ""}'
        change(plane, "UPDATE jobs SET envelope = :header WHERE id = :id", header=header, id=bad.job)
        assert node.end(bad, "failed", cause="error", message="odd").committed
        node.die()
        plane.wait_for(other.job, "pending")
        assert plane.job(bad.job)["state"] == "failed"


def test_arguments_that_are_nested_too_deep_keep_no_other_job_from_expiring(plane):
    message = plane.redis_message(plane.signature())
    message["body"], deep = "[" * 50_000 + "]" * 50_000, message["headers"]["id"]
    message["properties"].pop("body_encoding", None)
    message["headers"][HEADER]["start_by_seconds"] = 0.2
    with plane.scheduler():
        plane.redis.lpush(INBOX, json.dumps(message))
        other = plane.submit(2, start_by=0.2)
        for job_id in (deep, other):
            assert plane.wait_for(job_id, "cancelled")["cause"] == "expired"


def test_a_node_that_claims_what_no_column_holds_is_refused_and_told_so(plane, caplog):
    with plane.scheduler():
        node = FakeNode(connect(plane.broker_url), "boaster", cpu_cores=2**70)
        plane.nodes.append(node)
        reply = node.register()
        assert (reply.committed, (reply.message or "").split()[0]) == (False, "cpu_cores")
        assert "turn_failed" not in caplog.text
        job_id = plane.submit()
        assert plane.node().run().job == job_id


def test_what_is_no_id_among_the_beats_keeps_no_silent_node_from_being_found(plane):
    with plane.scheduler():
        node = plane.node()
        plane.redis.zadd(BEATS, {b"\xff\xfe": 1.0})
        plane.redis.set(telemetry_key(node.id), "[" * 100_000)
        node.die()
        until(lambda: [row["state"] for row in plane.client.nodes()] == ["lost"])


def test_a_moment_that_a_job_makes_up_fails_no_turn(plane, caplog):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        assignment = node.take()[0]
        node.start(assignment)
        node.tell(assignment, {"at": 10**400, "loss": 0.5})
        assert node.end(assignment).committed
        assert [row["values"]["loss"] for row in plane.client.requests.query("metrics", id=job_id)] == [0.5]
        assert "turn_failed" not in caplog.text
