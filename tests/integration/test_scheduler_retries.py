"""What becomes of a job whose attempt failed: tried again by cause, failed for good, or held and released."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from celery import chain

from cyxwiz_tasks.errors import InvalidJob, JobFailed, NotFound
from cyxwiz_tasks.protocol.names import INBOX, progress_key
from cyxwiz_tasks.protocol.reports import Process
from cyxwiz_tasks.resources import Resources, nominal
from db import jobs as job_moves
from tests.integration.waiting import until

ERROR = {
    "cause": "error",
    "message": "ValueError: odd",
    "exception": "builtins.ValueError",
    "exception_bases": ["builtins.ValueError", "builtins.Exception"],
    "traceback": "Traceback ...",
}
CRASH = {"cause": "crashed", "message": "the job's process was ended by SIGSEGV"}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr("broker.scheduler.retry_policy.BACKOFF_CAP_SECONDS", 0.02)
    monkeypatch.setattr("broker.scheduler.retry_policy.SPIN_CAP_SECONDS", 0.02)


def fail(node, **values):
    """The next attempt on a node, from its message to its end; what the scheduler answered."""
    assignment, _ = node.take()
    node.start(assignment)
    return assignment, node.end(assignment, "failed", **values)


def told(plane, job_id):
    return [json.loads(fields[b"update"]) for _, fields in plane.redis.xrange(progress_key(job_id))]


def test_an_error_is_tried_again_as_often_as_wished_and_then_its_nodes_word_is_the_last(plane):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit(max_retries=2)
        for number in (1, 2):
            assignment, reply = fail(node, **ERROR)
            assert (assignment.attempt, reply.committed, reply.final) == (number, True, False)
        _, reply = fail(node, **ERROR)
        assert (reply.committed, reply.final) == (True, True)
        job = plane.job(job_id)
        assert (job["state"], job["cause"], job["attempts"]) == ("failed", "error", 3)
        assert job["message"] == "ValueError: odd (tried 3 times)"
        assert [attempt["message"] for attempt in job["attempt_list"]] == ["ValueError: odd"] * 3
        assert plane.causes(job_id)[3:6] == [("pending", "error"), ("assigned", None), ("running", None)]


def test_whoever_waits_sees_retry_with_the_error(plane, monkeypatch):
    for name in ("BASE", "CAP"):
        monkeypatch.setattr(f"broker.scheduler.retry_policy.BACKOFF_{name}_SECONDS", 3600.0)
    with plane.scheduler():
        node = plane.node()
        handle = plane.client.submit(plane.signature(1), max_retries=1)
        fail(node, **ERROR)
        until(lambda: handle.state == "RETRY")
        result = handle.async_result
        assert isinstance(result.result, ValueError)
        assert result.traceback == "Traceback ..."
        assert handle.record()["celery_state"] == "RETRY"
        assert told(plane, handle.id)[-1]["state"] == "RETRY"
        assert "ValueError: odd" in str(handle.why())
        handle.cancel()
        until(lambda: handle.state == "REVOKED")


def test_a_job_that_was_to_be_cancelled_is_not_tried_again(plane):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit(max_retries=5)
        assignment, _ = node.take()
        plane.client.cancel(job_id)
        reply = node.end(assignment, "failed", **ERROR)
        assert (reply.committed, reply.final) == (True, False)
        assert plane.job(job_id)["state"] == "cancelled"
        until(lambda: plane.celery_state(job_id) == "REVOKED")


def test_only_wished_exceptions_are_tried_again(plane):
    with plane.scheduler():
        node = plane.node()
        task = plane.signature(1)
        task.options["headers"]["cyxwiz"] |= {"max_retries": 3, "no_retry_on": ["Exception"]}
        job_id = plane.client.submit(task).id
        _, reply = fail(node, **ERROR)
        assert reply.final
        assert plane.job(job_id)["state"] == "failed"


def test_the_same_report_of_an_attempt_that_was_tried_again_is_never_the_last_word(plane):
    with plane.scheduler():
        node = plane.node()
        plane.submit(max_retries=1)
        first, _ = fail(node, **ERROR)
        again = node.end(first, "failed", **ERROR)
        assert (again.committed, again.final) == (True, False)
        second, _ = fail(node, **ERROR)
        again = node.end(first, "failed", **ERROR)
        assert (again.committed, again.final) == (True, False), "the job failed, by another attempt"
        assert node.end(second, "failed", **ERROR).final


def test_a_job_that_crashes_three_times_is_held_and_released_with_fresh_tries(plane):
    with plane.scheduler():
        nodes = [plane.node(name, slots=1) for name in ("a", "b")]
        job_id = plane.submit(max_retries=5)
        for _ in range(3):
            where = taking(plane, nodes, job_id)
            fail(where, **CRASH)
        job = plane.wait_for(job_id, "held")
        assert job["message"].startswith("held, it crashed 3 times: attempt 1 on")
        assert "SIGSEGV" in job["message"]
        assert "cyxwiz release" in str(plane.client.why(job_id))
        assert plane.celery_state(job_id) == "ACCEPTED"
        other = plane.submit()
        assert taking(plane, nodes, other).run().job == other, "the queue behind it moves"
        assert [row["cordon"] for row in plane.client.nodes()] == [None, None]
        plane.client.get(job_id).release()
        for _ in range(2):
            fail(taking(plane, nodes, job_id), **CRASH)
        taking(plane, nodes, job_id).run()
        assert plane.job(job_id)["state"] == "completed"
        assert [state for state, _ in plane.causes(job_id)].count("held") == 1


def test_only_held_jobs_are_released(plane):
    with plane.scheduler():
        job_id = plane.submit()
        with pytest.raises(InvalidJob, match="is pending"):
            plane.client.release(job_id)
        with pytest.raises(NotFound):
            plane.client.release("0190b5a0-0000-7000-8000-000000000000")


def test_a_held_job_can_be_cancelled(plane):
    with plane.scheduler():
        job_id = plane.submit()
        with plane.engine.begin() as tx:
            job_moves.hold(tx, 1, [job_id], "crashed", "for this test")
        plane.client.cancel(job_id)
        assert plane.job(job_id)["state"] == "cancelled"


def test_a_job_that_takes_down_three_nodes_is_held(plane):
    with plane.scheduler():
        job_id = plane.submit()
        for number in range(1, 4):
            node = plane.node(f"node-{number}")
            assignment, _ = node.take()
            assert assignment.attempt == number
            node.start(assignment)
            plane.wait_for(job_id, "running")
            node.leave()
        job = plane.wait_for(job_id, "held")
        assert job["cause"] == "node_lost"
        assert "3 different nodes" in job["message"]
        assert all(f"on node-{number}" in job["message"] for number in (1, 2, 3))


def test_losing_nodes_before_a_job_starts_says_nothing_of_it(plane):
    with plane.scheduler():
        job_id = plane.submit()
        for number in range(1, 13):
            node = plane.node(f"node-{number}")
            assert node.take()[0].attempt == number
            node.leave()
        assert plane.node("last").run().job == job_id
        assert plane.job(job_id)["attempts"] == 13


@pytest.mark.parametrize(("process", "state"), [(None, "pending"), (Process(pid=4711, device="cpu"), "held")])
def test_a_node_that_says_it_lost_a_job_says_too_whether_it_had_begun(plane, process, state):
    plane.settings = plane.settings.model_copy(update={"poison_limit": 1})
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        assignment, _ = node.take()
        assert node.end(assignment, "failed", cause="node_lost", process=process).committed
    assert (state, "node_lost") in plane.causes(job_id)


@pytest.mark.parametrize(("cause", "tries"), [("hung", 3), ("network", 11), ("hardware", 11), ("time_limit", 1)])
def test_budgets_of_causes_that_are_not_the_jobs_own(plane, monkeypatch, cause, tries):
    monkeypatch.setattr("broker.scheduler.standing._count_fault", lambda *_: None)
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit(max_retries=1)
        for number in range(1, tries + 1):
            assignment, reply = fail(node, cause=cause, message="it ended")
            assert (assignment.attempt, reply.final) == (number, number == tries)
        job = plane.job(job_id)
        assert (job["state"], job["cause"]) == ("failed", cause)
        assert (f"tried {tries} times" in job["message"]) == (tries > 1)


@pytest.mark.parametrize("cause", ["network", "hardware"])
def test_what_may_be_its_nodes_fault_is_tried_on_another_node_or_there_again_if_none_has_room(plane, cause):
    with plane.scheduler():
        first, second = plane.node("a", slots=1), plane.node("b", slots=1)
        # It takes the same node as before wherever the scores are equal.
        job_id = plane.submit(resources={"node": "a|b", "prefer": {"node=a": 1}})
        fail(first, cause=cause, message="it broke")
        until(lambda: "beside a, where it failed before" in str(told(plane, job_id)))
        fail(second, cause=cause, message="it broke")
        assert first.take()[0].attempt == 3
        other = plane.submit(resources={"node": "b"})
        assert second.take()[0].job == other


def test_a_preempted_job_runs_again_at_once_and_for_ever(plane):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        for number in range(1, 8):
            assignment, _ = node.take()
            assert assignment.attempt == number
            node.start(assignment)
            assert not node.end(assignment, "preempted", cause="preempted").final
        assert node.run().job == job_id


def test_out_of_memory_is_tried_again_on_a_bigger_gpu_alone_and_a_new_leader_knows(plane):
    with plane.scheduler():
        small = plane.node("small", gpus=1, gpu_gb=24)
        job_id = plane.submit(resources={"gpus": 1}, max_retries=2)
        fail(small, cause="out_of_memory", message="CUDA out of memory", had_memory_bytes=24 << 30)
        until(lambda: "27.6GB" in str(plane.client.why(job_id)))
        assert "ran out of memory" in str(plane.client.why(job_id))
        assert plane.job(job_id)["learned"] == {"gpu_memory": "27.6GB.."}
    with plane.scheduler():
        until(lambda: "27.6GB" in str(plane.client.why(job_id)))
        big = plane.node("big", gpus=1, gpu_gb=80)
        assert big.run().job == job_id
        assert small.client.llen(f"node.{small.id}") == 0


def test_out_of_memory_on_a_shared_gpu_is_tried_again_with_a_bigger_share(plane):
    with plane.scheduler():
        node = plane.node(gpus=1, gpu_gb=24)
        job_id = plane.submit(resources={"shared": True, "gpu_memory": "8GB"}, max_retries=2)
        first, _ = node.take()
        assert first.gpu_share_bytes == nominal(8 << 30)
        node.start(first)
        node.end(first, "failed", cause="out_of_memory", message="CUDA out of memory", had_memory_bytes=8 << 30)
        second, _ = node.take()
        assert (second.job, second.attempt) == (job_id, 2)
        assert second.gpu_share_bytes == Resources(shared=True, gpu_memory="9.2GB").gpu_share_bytes
        node.start(second)
        assert node.end(second).final


def test_a_task_that_retries_itself_says_so_in_its_report(plane):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit(1)
        first, _ = node.take()
        node.start(first)
        eta = datetime.now(UTC) + timedelta(seconds=2.0)
        message = json.dumps(plane.redis_message(plane.signature(2), task_id=job_id, retries=1, eta=eta))
        reply = node.end(first, "retry", message="tries again after ValueError: odd", retry=message)
        assert (reply.committed, reply.final) == (True, False)
        assert plane.celery_state(job_id) == "RETRY"
        second, following = node.take()
        assert time.time() >= eta.timestamp()
        assert (second.attempt, following["headers"]["retries"]) == (2, 1)
        assert following["body"] == json.loads(message)["body"]
        # By the old way it comes once more, and again; both are known.
        plane.redis.lpush(INBOX, message, message)
        assert node.end(first, "retry", message="tries again", retry=message).committed
        node.start(second)
        assert node.end(second).committed
        job = plane.job(job_id)
        assert (job["state"], job["attempts"]) == ("completed", 2)
        assert job["attempt_list"][0]["cause"] == "error"


def test_a_countdown_is_judged_by_no_nodes_clock(plane):
    with plane.scheduler():
        node = plane.node()
        for left, wrong in ((0.5, timedelta(hours=2)), (None, timedelta(0))):
            job_id = plane.submit(1)
            first, _ = node.take()
            eta = datetime.now(UTC) + wrong
            message = json.dumps(plane.redis_message(plane.signature(2), task_id=job_id, retries=1, eta=eta))
            began = time.monotonic()
            node.end(first, "retry", message="tries again", retry=message, retry_in_seconds=left)
            assert node.run().job == job_id
            assert time.monotonic() - began >= (left or 0.0)


def test_a_retry_that_comes_by_the_inbox_from_an_attempt_that_lost_its_job_ends_nothing(plane):
    with plane.scheduler():
        old = plane.node("old")
        job_id = plane.submit(1)
        _, lost = old.take()
        old.leave()
        new = plane.node("new")
        second, _ = new.take()
        new.start(second)
        message = plane.redis_message(plane.signature(2), task_id=job_id, retries=1)
        message["headers"]["cyxwiz_assignment"] = lost["headers"]["cyxwiz_assignment"]
        plane.redis.lpush(INBOX, json.dumps(message))
        plane.submit(3)
        assert new.take()[0].job != job_id
        assert new.end(second).committed
        assert (plane.job(job_id)["state"], plane.job(job_id)["attempts"]) == ("completed", 2)


def test_a_retry_that_cannot_be_read_fails_its_job(plane):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit(1)
        other = json.dumps(plane.redis_message(plane.signature(2), retries=1))
        first, _ = node.take()
        assert not node.end(first, "retry", message="tries again", retry=other).final
        job = plane.job(job_id)
        assert (job["state"], job["cause"]) == ("failed", "error")
        assert "of another job" in job["message"]
        until(lambda: plane.celery_state(job_id) == "FAILURE")


def test_a_retry_of_an_attempt_that_does_not_count_changes_nothing(plane):
    with plane.scheduler():
        old, new = plane.node("old"), None
        job_id = plane.submit(1)
        lost, _ = old.take()
        old.silence()
        new = plane.node("new")
        second, _ = new.take()
        message = json.dumps(plane.redis_message(plane.signature(2), task_id=job_id, retries=1))
        assert not old.end(lost, "retry", message="tries again", retry=message).committed
        assert new.end(second).committed
        assert plane.job(job_id)["state"] == "completed"


def test_an_end_that_nobody_tells_celery_of_is_told_here(plane):
    with plane.scheduler():
        node = plane.node()
        result = chain(plane.signature(1), plane.signature(2), app=plane.app).apply_async()
        first, _ = node.take()
        assert first.job == result.parent.id
        assert node.end(first, result=5, untold=True).committed
        assert result.parent.get(timeout=5) == 5
        assert node.run(result=6).job == result.id
        failed = plane.client.submit(plane.signature(3))
        assignment, _ = node.take()
        node.end(assignment, "failed", untold=True, **ERROR)
        with pytest.raises(ValueError, match="odd"):
            failed.result(timeout=5)
        held = plane.client.submit(plane.signature(4))
        assignment, _ = node.take()
        node.end(assignment, "failed", untold=True, **CRASH)
        with pytest.raises(JobFailed, match="SIGSEGV"):
            held.result(timeout=5)


def taking(plane, nodes, job_id):
    """The node on which a job is placed next."""
    plane.wait_for(job_id, "assigned")
    place = plane.job(job_id)["node_id"]
    return next(node for node in nodes if node.id == place)
