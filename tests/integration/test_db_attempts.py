"""Placing, starting, ending and taking back: what is current counts, everything else is fenced."""

from __future__ import annotations

import threading
import uuid
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from cyxwiz_tasks.states import AttemptState, Cause, JobState
from db import attempts, jobs
from db.attempts import Ending
from tests.integration.record import LEASE_SECONDS


def completed(place, **values):
    return Ending(place.job_id, place.token, place.node_id, AttemptState.COMPLETED, JobState.COMPLETED, **values)


def test_a_job_goes_its_way(record):
    id = record.pending()
    place = record.assign(id)[id]
    assert (place.number, place.node_id) == (1, record.node_id)
    assert record.start(place) == {place.token}
    settled = record.end(place, AttemptState.COMPLETED, JobState.COMPLETED, result={"accuracy": 0.99}, exit_code=0)
    assert (settled.committed, settled.repeated, settled.job_state) == (True, False, JobState.COMPLETED)
    page = record.job(id)
    assert page["result"] == {"accuracy": 0.99}
    (attempt,) = page["attempt_list"]
    assert (attempt["state"], attempt["pid"], attempt["device"], attempt["gpus"]) == ("completed", 4711, "cuda:0", [0])
    assert attempt["assigned_at"] <= attempt["started_at"] <= attempt["ended_at"]
    assert attempt["scores"] == {"fit": 1.0}
    assert record.broken_rules() == {}


def test_only_pending_jobs_are_placed(record):
    first, second = record.pending(), record.pending()
    record.assign(first)
    assert set(record.assign(first, second, str(uuid.uuid4()))) == {second}


def test_one_job_twice_in_a_batch_gets_one_place(record):
    id = record.pending()
    assert len(record.assign(id, id)) == 1
    assert record.job(id)["attempts"] == 1
    assert record.broken_rules() == {}


def test_a_second_live_attempt_is_impossible(record):
    _, place = record.in_state(JobState.RUNNING)
    copy = text(
        """
        INSERT INTO attempts (token, job_id, number, node_id, incarnation, gpus, gpu_memory_bytes, cpus, ram_bytes,
            state, epoch, assigned_at, lease_until)
        SELECT token + 1000, job_id, number + 1, node_id, incarnation, gpus, gpu_memory_bytes, cpus, ram_bytes,
            'assigned', epoch, assigned_at, lease_until FROM attempts WHERE token = :token"""
    )
    with pytest.raises(IntegrityError, match="uq_attempts_live_job"):
        record.do(lambda tx: tx.execute(copy, {"token": place.token}))


def test_an_end_may_come_before_its_start(record):
    id, place = record.in_state(JobState.ASSIGNED)
    assert record.end(place, AttemptState.FAILED, JobState.FAILED, cause=Cause.ERROR).committed
    assert record.start(place) == set()
    assert record.state(id) == JobState.FAILED


def test_the_same_report_again_is_committed_and_changes_nothing(record):
    id, place = record.in_state(JobState.RUNNING)
    first = record.do(attempts.end, record.epoch, [completed(place, result=1)])
    again = record.do(attempts.end, record.epoch, [completed(place, result=2)])
    assert [(one.committed, one.repeated) for one in first + again] == [(True, False), (True, True)]
    assert record.job(id)["result"] == 1
    assert record.broken_rules() == {}


def test_of_different_reports_of_one_attempt_the_first_counts(record):
    id, place = record.in_state(JobState.RUNNING)
    failed = replace(completed(place), state=AttemptState.FAILED, job_state=JobState.FAILED, cause=Cause.ERROR)
    found = record.do(attempts.end, record.epoch, [completed(place), failed, completed(place)])
    assert [(one.committed, one.repeated) for one in found] == [(True, False), (False, False), (True, True)]
    (late,) = record.do(attempts.end, record.epoch, [failed])
    assert (late.committed, late.job_state) == (False, JobState.COMPLETED)
    assert record.state(id) == JobState.COMPLETED


def test_reports_of_an_older_attempt_are_fenced(record):
    id, old = record.in_state(JobState.RUNNING)
    record.do(attempts.unplace, record.epoch, [old.token], Cause.NODE_LOST)
    new = record.assign(id)[id]
    assert new.token > old.token
    assert record.start(old) == set()
    assert not record.end(old, AttemptState.COMPLETED, JobState.COMPLETED).committed
    assert record.state(id) == JobState.ASSIGNED
    assert record.end(new, AttemptState.COMPLETED, JobState.COMPLETED).committed
    assert record.broken_rules() == {}


@pytest.mark.parametrize("wrong", ["job_id", "node_id", "token"])
def test_a_report_must_name_job_node_and_token(record, wrong):
    id, place = record.in_state(JobState.ASSIGNED)
    lie = replace(place, **{wrong: 999_999 if wrong == "token" else str(uuid.uuid4())})
    assert record.start(lie) == set()
    settled = record.end(lie, AttemptState.COMPLETED, JobState.COMPLETED)
    assert not settled.committed
    assert record.state(id) == JobState.ASSIGNED


@pytest.mark.parametrize("live", [JobState.ASSIGNED, JobState.RUNNING])
@pytest.mark.parametrize(
    ("cause", "attempt_state"),
    [(Cause.NODE_LOST, AttemptState.LOST), (Cause.PREEMPTED, AttemptState.PREEMPTED)],
)
def test_what_is_taken_back_waits_again(record, live, cause, attempt_state):
    id, place = record.in_state(live)
    (settled,) = record.do(attempts.unplace, record.epoch, [place.token, 999_999], cause, "node one went silent")
    assert (settled.job_id, settled.token, settled.job_state) == (id, place.token, JobState.PENDING)
    assert record.do(attempts.unplace, record.epoch, [place.token], cause) == []
    page = record.job(id)
    assert (page["cause"], page["message"], page["node_id"]) == (cause, "node one went silent", None)
    assert page["attempt_list"][0]["state"] == attempt_state
    assert record.assign(id)[id].number == 2
    assert record.job(id)["cause"] is None
    assert record.broken_rules() == {}


@pytest.mark.parametrize("job_state", [JobState.FAILED, JobState.HELD])
def test_a_job_that_lost_too_many_nodes_goes_nowhere(record, job_state):
    id, place = record.in_state(JobState.RUNNING)
    record.do(attempts.unplace, record.epoch, [place.token], Cause.NODE_LOST, "lost three nodes", job_state)
    assert record.state(id) == job_state
    assert record.broken_rules() == {}


def test_a_job_whose_cancellation_was_asked_for_is_not_placed_again(record):
    (lost, lost_place), (gone, gone_place) = record.in_state(JobState.RUNNING), record.in_state(JobState.RUNNING)
    for id in (lost, gone):
        record.do(jobs.request_cancel, record.epoch, id, "enough")
    (settled,) = record.do(attempts.unplace, record.epoch, [lost_place.token], Cause.NODE_LOST)
    ended = record.end(gone_place, AttemptState.PREEMPTED, JobState.PENDING, cause=Cause.PREEMPTED)
    assert settled.job_state == ended.job_state == JobState.CANCELLED
    for id in (lost, gone):
        page = record.job(id)
        assert (page["state"], page["cause"], page["message"]) == ("cancelled", "cancelled", "enough")
    assert record.broken_rules() == {}


def test_a_new_leader_finds_what_is_under_way(record):
    id, place = record.in_state(JobState.RUNNING)
    waiting_id, _ = record.in_state(JobState.ASSIGNED)
    record.in_state(JobState.COMPLETED)
    record.do(jobs.request_cancel, record.epoch, id)
    running, assigned = record.do(attempts.live)
    assert (running.job_id, running.token, running.state, running.gpus) == (id, place.token, AttemptState.RUNNING, (0,))
    assert (running.cancel_requested, assigned.cancel_requested) == (True, False)
    assert (assigned.job_id, assigned.resources, assigned.incarnation) == (waiting_id, {"gpus": 1}, "i1")
    assert 0 < assigned.lease_left_seconds <= LEASE_SECONDS
    assert assigned.age_seconds >= 0


def test_leases_run_out_unless_they_are_renewed(record):
    _, place = record.in_state(JobState.RUNNING)
    _, other = record.in_state(JobState.ASSIGNED)
    record.do(attempts.renew, [record.node_id], -1.0)
    assert record.do(attempts.overdue) == [place.token, other.token]
    assert record.do(attempts.renew, [record.node_id], 60.0) == 2
    assert record.do(attempts.overdue) == []
    assert record.do(attempts.renew, [str(uuid.uuid4())], 60.0) == 0


def test_of_two_ends_at_once_one_is_committed(record):
    for _ in range(10):
        _, place = record.in_state(JobState.RUNNING)
        barrier, answers = threading.Barrier(2), []

        def report(state, job_state, place=place, barrier=barrier, answers=answers):
            barrier.wait(timeout=10)
            answers.append(record.end(place, state, job_state).committed)

        threads = [
            threading.Thread(target=report, args=(AttemptState.COMPLETED, JobState.COMPLETED)),
            threading.Thread(target=report, args=(AttemptState.PREEMPTED, JobState.PENDING)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
        assert sorted(answers) == [False, True]
    assert record.broken_rules() == {}


def test_a_result_with_odd_values_is_stored(record):
    id, place = record.in_state(JobState.RUNNING)
    record.end(place, AttemptState.COMPLETED, JobState.COMPLETED, result={"loss": float("inf"), "t": "a\x00"})
    assert record.job(id)["result"] == {"loss": "inf", "t": "a\ufffd"}


def test_a_job_that_failed_shows_why(record):
    id, place = record.in_state(JobState.RUNNING)
    record.end(
        place,
        AttemptState.FAILED,
        JobState.FAILED,
        cause=Cause.OUT_OF_MEMORY,
        message="needed 9 GB",
        exception="OutOfMemoryError",
        traceback="Traceback ...",
        exit_code=-9,
    )
    page = record.job(id)
    assert (page["cause"], page["message"], page["exception"]) == ("out_of_memory", "needed 9 GB", "OutOfMemoryError")
    assert page["attempt_list"][0]["exit_code"] == -9
