"""A job's way through a real scheduler, Redis and Postgres, with nodes that the test plays."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta

import pytest

from cyxwiz_tasks import Resources
from cyxwiz_tasks.errors import InvalidJob, JobConflict, NotFound
from cyxwiz_tasks.protocol.names import HEADER, INBOX, REJECTED, REPORTS, progress_key, reply_key
from tests.integration.waiting import until


def updates(plane, job_id):
    return [json.loads(fields[b"update"]) for _, fields in plane.redis.xrange(progress_key(job_id))]


def test_a_job_goes_from_its_submission_to_its_result(plane):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit(7)
        assignment, message = node.take()
        assert (assignment.job, assignment.attempt, assignment.node) == (job_id, 1, node.id)
        assert message["headers"]["id"] == job_id
        assert "reply_to" not in message["headers"][HEADER]
        assert message["properties"]["delivery_info"]["routing_key"] == f"node.{node.id}"
        assert plane.celery_state(job_id) == "ASSIGNED"
        node.start(assignment)
        node.tell(assignment, {"loss": 0.5, "at": 1.0}, {"loss": float("nan"), "at": 2.0})
        assert node.end(assignment, result={"sum": 7}).committed
        assert len(plane.client.metrics(job_id)) == 2
    job = plane.job(job_id)
    assert (job["state"], job["result"], job["node"]) == ("completed", {"sum": 7}, "fake")
    assert plane.causes(job_id) == [("pending", None), ("assigned", None), ("running", None), ("completed", None)]
    assert [(update["kind"], update["state"]) for update in updates(plane, job_id)] == [
        ("state", "ASSIGNED"),
        ("end", "SUCCESS"),
    ]
    assert plane.redis.ttl(progress_key(job_id)) > 0


def test_a_job_without_a_node_waits_and_says_why(plane):
    with plane.scheduler():
        job_id = plane.submit(resources=Resources(gpu_memory="200GB.."))
        assert plane.celery_state(job_id) == "ACCEPTED"
        assert "cyxwiz worker" in str(plane.client.why(job_id))
        plane.node(gpus=1)
        until(lambda: "200GB" in str(plane.client.why(job_id)))
        assert "1 node of 1 fits" in str(plane.client.plan(Resources(gpus=1)))


def test_the_same_id_or_key_is_the_same_job_and_another_job_is_a_conflict(plane):
    with plane.scheduler():
        first = plane.submit(1)
        assert plane.submit(1, id=first) == first
        with pytest.raises(JobConflict):
            plane.submit(2, id=first)
        one = plane.submit(3, idempotency_key="three", owner="ann")
        assert plane.submit(3, idempotency_key="three", owner="ann") == one
        assert plane.submit(3, idempotency_key="three", owner="bob") != one
        assert plane.client.status()["jobs"]["pending"] == 3


def test_many_jobs_are_recorded_in_the_order_in_which_they_were_sent(plane):
    with plane.scheduler():
        handles = plane.client.submit_many([plane.signature(number) for number in range(1200)])
        rows = plane.client.jobs(limit=1200)
    assert [row["id"] for row in reversed(rows)] == [handle.id for handle in handles]


def test_urgent_jobs_go_first_and_equal_ones_in_the_order_of_their_acceptance(plane):
    with plane.scheduler():
        sent = {priority: plane.submit(priority=priority) for priority in ("low", "normal", "critical", "high")}
        later = plane.submit(priority="high")
        node = plane.node(slots=1)
        order = [node.run().job for _ in range(5)]
    assert order == [sent["critical"], sent["high"], later, sent["normal"], sent["low"]]


def test_a_message_in_one_of_kombus_priority_lists_arrives_too(plane):
    with plane.scheduler():
        message = plane.redis_message(plane.signature(1))
        plane.redis.lpush(f"{INBOX}\x06\x169", json.dumps(message))
        until(lambda: len(plane.client.jobs()) == 1)


def test_eta_keeps_a_job_and_its_message_loses_it(plane):
    with plane.scheduler():
        node = plane.node()
        began = time.time()
        result = plane.signature(1).apply_async(countdown=0.8)
        assignment, message = node.take()
    assert time.time() - began >= 0.8
    assert assignment.job == result.id
    assert message["headers"]["eta"] is None


def test_a_job_that_waits_past_its_expires_is_revoked(plane):
    with plane.scheduler():
        result = plane.signature(1).apply_async(expires=0.4)
        over = plane.signature(2).apply_async(expires=datetime.now(UTC) - timedelta(seconds=5))
        for job_id in (result.id, over.id):
            until(lambda: len(plane.client.jobs()) == 2)
            job = plane.wait_for(job_id, "cancelled")
            assert job["cause"] == "expired"
            until(lambda: plane.celery_state(job_id) == "REVOKED")  # noqa: B023
        node = plane.node()
        assert node.client.llen(f"node.{node.id}") == 0


def test_ends_of_every_kind(plane):
    with plane.scheduler():
        node = plane.node()
        ends = {
            "completed": ({}, "completed"),
            "failed": ({"cause": "error", "message": "no", "exception": "ValueError", "traceback": "x\x00"}, "failed"),
            "cancelled": ({"cause": "cancelled"}, "cancelled"),
        }
        for outcome, (values, state) in ends.items():
            job_id = plane.submit()
            assignment, _ = node.take()
            node.start(assignment)
            assert node.end(assignment, outcome, **values).committed
            assert plane.job(job_id)["state"] == state
            assert node.end(assignment, outcome, **values).committed, "the same report again"
            other = "failed" if outcome != "failed" else "completed"
            assert not node.end(assignment, other).committed, "another report of an attempt that is over"


def test_a_preempted_job_and_one_whose_hardware_failed_run_again(plane):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        for number, values in enumerate([{"outcome": "preempted"}, {"outcome": "failed", "cause": "hardware"}], 1):
            assignment, _ = node.take()
            assert assignment.attempt == number
            node.start(assignment)
            assert node.end(assignment, **values).committed
        assert node.run().attempt == 3
        assert plane.job(job_id)["state"] == "completed"


def test_a_retry_of_the_task_itself_starts_the_job_over_with_its_new_message(plane):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit(1)
        first, _ = node.take()
        node.start(first)
        retry = plane.redis_message(plane.signature(2), task_id=job_id, retries=1)
        plane.redis.lpush(INBOX, json.dumps(retry))
        second, message = node.take()
        assert (second.job, second.attempt, message["headers"]["retries"]) == (job_id, 2, 1)
        assert message["body"] == retry["body"]
        assert not node.end(first, "preempted").committed
        plane.redis.lpush(INBOX, json.dumps(retry))
        node.start(second)
        assert node.end(second).committed
        assert plane.job(job_id)["attempts"] == 2


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda message: message["headers"].pop(HEADER), None, "no header"),
        (lambda message: message["headers"][HEADER].update(version=7), "ProtocolError", "version 7"),
        (lambda message: message["headers"].update(id="17"), "InvalidJob", "not a UUID"),
        (lambda message: message["headers"].update(task=""), "InvalidJob", "task"),
        (lambda message: message["headers"].update(eta="soon"), "InvalidJob", "eta"),
        (lambda message: message["headers"][HEADER].update(resources={"gpus": -1}), "InvalidJob", "gpus"),
        (lambda message: message["headers"][HEADER].update(resources={"gpu": 1}), "InvalidJob", "gpu"),
        (lambda message: message.update(body="x" * (2 << 20)), "ProtocolError", "allowed are"),
        (lambda message: message["headers"][HEADER].update(owner="x" * 5000), "InvalidJob", "owner"),
    ],
)
def test_a_bad_message_is_refused_with_words_and_the_next_one_is_taken(plane, change, error, words):
    with plane.scheduler():
        reply_to = reply_key("test")
        message = plane.redis_message(plane.signature(1))
        message["headers"][HEADER]["reply_to"] = reply_to
        change(message)
        plane.redis.lpush(INBOX, json.dumps(message))
        good = plane.submit(2)
        assert plane.job(good)["state"] == "pending"
        assert words in json.loads(plane.redis.lindex(REJECTED, 0))["reason"]
        if error is not None:
            [ack] = json.loads(plane.redis.brpop([reply_to], 5)[1])["acks"]
            assert ack["error_type"] == error
            assert words in ack["error"]
        assert plane.celery_state(message["headers"]["id"]) == "FAILURE"


def test_noise_is_put_aside(plane):
    noise = [b"\xff\xfe", b"{", b"[]", b"7", b'{"headers": 3}', b"[" * 100_000, b'{"headers": {"cyxwiz": {}}}']
    with plane.scheduler():
        for source in (INBOX, REPORTS, "cyxwiz.commands"):
            plane.redis.lpush(source, *noise)
        until(lambda: plane.redis.llen(REJECTED) == 3 * len(noise))
        plane.submit()


def test_a_refused_job_raises_at_its_submitter(plane):
    signature = plane.app.signature("tests.add", headers={HEADER: {"version": 1, "owner": "x" * 300}}, queue=INBOX)
    with plane.scheduler(), pytest.raises(InvalidJob, match="owner"):
        plane.client.submit(signature)


def test_queries_answer_from_the_record(plane):
    with plane.scheduler():
        node = plane.node("alpha", gpus=2)
        job_id = plane.submit(name="digits", owner="ann")
        assert node.run({"sum": 1}).job == job_id
        assert plane.client.job(job_id)["attempts"][0]["node"] == "alpha"
        assert [event["to_state"] for event in plane.client.events(job_id)][-1] == "completed"
        until(lambda: plane.client.status()["nodes"]["up"] == 1)
        [found] = plane.client.nodes()
        assert (found["name"], found["state"], len(found["capability"]["gpus"])) == ("alpha", "up", 2)
        assert [row["name"] for row in plane.client.jobs(states=["completed"], owner="ann")] == ["digits"]
        assert plane.client.jobs(before=job_id) == []
        status = plane.client.status()
        assert (status["jobs"]["completed"], status["nodes"]["up"], status["leader"]["epoch"]) == (1, 1, 1)
        with pytest.raises(NotFound):
            plane.client.job("0190b5a0-0000-7000-8000-000000000000")
        with pytest.raises(InvalidJob, match="states"):
            plane.client.jobs(states=["lazy"])
        assert "is completed on node alpha" in str(plane.client.why(job_id))
