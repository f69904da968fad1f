"""Accepting jobs, and moving those that wait."""

from __future__ import annotations

import hashlib
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import AttemptState, Cause, JobState
from db import events, job_messages, job_pages, jobs, waiting_jobs
from db.job_messages import StoredMessage
from tests.integration.record import new_job

OTHER_DIGEST = hashlib.sha256(b"other").hexdigest()


def test_a_job_is_accepted_once_however_often_it_comes(record):
    job = new_job(name="mine", owner="ann", priority=3, time_limit_seconds=60.0)
    (first,) = record.accept(job)
    (again,) = record.accept(job)
    assert (first.job_id, first.state, first.created, first.conflict) == (job.id, JobState.PENDING, True, False)
    assert (again.job_id, again.created, again.conflict, again.seq) == (job.id, False, False, first.seq)
    assert len(record.do(events.of_job, job.id)) == 1


def test_a_job_that_was_placed_meanwhile_says_so(record):
    id, _ = record.in_state(JobState.RUNNING)
    (again,) = record.accept(new_job(id))
    assert (again.state, again.created) == (JobState.RUNNING, False)


def test_another_job_under_a_known_id_is_a_conflict(record):
    job = new_job()
    record.accept(job)
    (other,) = record.accept(new_job(job.id, digest=OTHER_DIGEST))
    assert other.conflict
    assert not other.created


def test_an_idempotency_key_names_one_job_of_an_owner(record):
    first, again, changed, other_owner = (
        new_job(owner="ann", idempotency_key="k", digest=OTHER_DIGEST),
        new_job(owner="ann", idempotency_key="k", digest=OTHER_DIGEST),
        new_job(owner="ann", idempotency_key="k"),
        new_job(owner="bob", idempotency_key="k"),
    )
    record.accept(first)
    found = record.accept(again, changed, other_owner)
    assert [one.job_id for one in found] == [first.id, first.id, other_owner.id]
    assert [one.created for one in found] == [False, False, True]
    assert [one.same for one in found] == [True, False, True]
    assert not any(one.conflict for one in found)


def test_repeats_inside_one_batch_are_one_job(record):
    one, keyed = new_job(), new_job(idempotency_key="k")
    batch = [one, new_job(one.id), new_job(one.id, digest=OTHER_DIGEST), keyed, new_job(idempotency_key="k")]
    found = record.accept(*batch)
    assert [answer.created for answer in found] == [True, False, False, True, False]
    assert [answer.conflict for answer in found] == [False, False, True, False, False]
    assert [answer.job_id for answer in found] == [one.id, one.id, one.id, keyed.id, keyed.id]
    assert [answer.id for answer in found] == [job.id for job in batch]
    assert sum(record.do(job_pages.counts).values()) == 2
    assert record.broken_rules() == {}


def test_jobs_are_numbered_in_the_order_of_their_batch(record):
    batch = [new_job() for _ in range(200)]
    found = record.accept(*batch)
    assert [answer.seq for answer in found] == sorted(answer.seq for answer in found)
    assert [job.id for job in record.do(lambda tx: list(waiting_jobs.waiting(tx)))] == [job.id for job in batch]


def test_an_empty_batch_is_no_work(record):
    assert record.accept() == []
    assert record.assign() == {}
    assert record.start() == set()


def test_text_that_postgresql_cannot_store_is_stored_without_it(record):
    (found,) = record.accept(
        new_job(name="a\x00b", owner="\ud800", headers={"argsrepr": "\x00", "n": float("nan")}, body="x\x00")
    )
    assert found.created
    page = record.job(found.job_id)
    assert (page["name"], page["owner"]) == ("a\ufffdb", "\ufffd")
    message = record.do(job_messages.messages, [found.job_id])[found.job_id]
    assert (message.headers, message.body) == ({"argsrepr": "\ufffd", "n": "nan"}, "x\ufffd")
    assert record.do(job_pages.find, name="\x00", owner="\ud800")
    assert record.do(jobs.cancel_waiting, record.epoch, [found.job_id], message="\x00") == [found.job_id]


def test_waiting_jobs_come_by_urgency_then_by_age(record):
    low, normal, urgent, late = (record.pending(priority=priority) for priority in (0, 1, 3, 1))
    placed = record.pending()
    record.assign(placed)
    found = record.do(lambda tx: list(waiting_jobs.waiting(tx)))
    assert [job.id for job in found] == [urgent, normal, late, low]
    assert Resources.of_shape(found[0].shape) == Resources(gpus=1)


def test_waiting_times_count_from_now(record):
    soon, past = datetime.now(UTC) + timedelta(hours=1), datetime.now(UTC) - timedelta(hours=1)
    record.pending(not_before=soon, expires_at=soon + timedelta(hours=1))
    record.pending(not_before=past)
    first, second = record.do(lambda tx: list(waiting_jobs.waiting(tx)))
    assert first.starts_in_seconds == pytest.approx(3600, abs=60)
    assert first.expires_in_seconds == pytest.approx(7200, abs=60)
    assert second.starts_in_seconds == pytest.approx(-3600, abs=60)
    assert second.expires_in_seconds is None


def test_what_waits_is_streamed_and_nothing_else(record, monkeypatch):
    monkeypatch.setattr(waiting_jobs, "_WAITING", waiting_jobs._WAITING.execution_options(yield_per=2))
    ids = [answer.job_id for answer in record.accept(*(new_job() for _ in range(5)))]

    def read_then_write(tx):
        found = [job.id for job in waiting_jobs.waiting(tx)]
        return found, jobs.cancel_waiting(tx, record.epoch, found[:1])

    assert record.do(read_then_write) == (ids, ids[:1])


def test_messages_come_back_as_they_were(record):
    job = new_job(headers={"id": "x", "deep": {"a": [1, 2.5, None, "ü"]}}, body="b" * 100_000)
    record.accept(job)
    assert record.do(job_messages.messages, [job.id, str(uuid.uuid4())]) == {
        job.id: StoredMessage(job.headers, job.body, job.properties)
    }


def test_a_newer_message_of_a_job_replaces_the_old_one_until_it_has_ended(record):
    newer = StoredMessage({"retries": 1}, "new", {})
    eta = datetime.now(UTC) + timedelta(minutes=1)
    for state in JobState:
        id, _ = record.in_state(state)
        ended = state in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)
        assert record.do(job_messages.replace_message, id, newer, eta) is not ended
        assert (record.do(job_messages.messages, [id])[id] == newer) is not ended


def test_a_retry_waits_for_the_time_its_message_named(record):
    id, place = record.in_state(JobState.RUNNING)
    eta = datetime.now(UTC) + timedelta(minutes=10)
    record.do(job_messages.replace_message, id, StoredMessage({"retries": 1}, "", {}), eta)
    record.end(place, AttemptState.FAILED, JobState.PENDING, cause=Cause.ERROR, retry_after_seconds=1.0)
    (waiting,) = record.do(lambda tx: list(waiting_jobs.waiting(tx)))
    assert waiting.starts_in_seconds == pytest.approx(600, abs=60)
    page = record.job(id)
    assert (page["cause"], page["attempts"]) == (Cause.ERROR, 1)


def test_jobs_expire_by_the_databases_clock(record):
    past, future = datetime.now(UTC) - timedelta(minutes=1), datetime.now(UTC) + timedelta(hours=1)
    old, running = record.pending(expires_at=past), record.pending(expires_at=past)
    record.assign(running)
    record.pending(expires_at=future)
    assert record.do(jobs.expire, record.epoch) == [old]
    assert record.do(jobs.expire, record.epoch) == []
    page = record.job(old)
    assert (page["state"], page["cause"]) == ("cancelled", "expired")


def test_cancelling_a_running_job_is_a_wish_until_its_node_reports(record):
    id, place = record.in_state(JobState.RUNNING)
    asked = record.do(jobs.request_cancel, record.epoch, id, "too slow")
    assert (asked.before, asked.state, asked.token) == (JobState.RUNNING, JobState.RUNNING, place.token)
    assert asked.node_id == record.node_id
    again = record.do(jobs.request_cancel, record.epoch, id, "still")
    assert again == asked
    notes = [event for event in record.do(events.of_job, id) if event["to_state"] is None]
    assert [note["detail"] for note in notes] == [{"cancel_requested": "too slow"}]
    record.end(place, AttemptState.CANCELLED, JobState.CANCELLED, cause=Cause.CANCELLED)
    assert record.job(id)["cancel_reason"] == "too slow"
    assert record.broken_rules() == {}


def test_cancelling_a_waiting_job_ends_it(record):
    id = record.pending()
    asked = record.do(jobs.request_cancel, record.epoch, id, "not needed")
    assert (asked.before, asked.state, asked.token) == (JobState.PENDING, JobState.CANCELLED, None)
    page = record.job(id)
    assert (page["state"], page["cause"], page["message"]) == ("cancelled", "cancelled", "not needed")
    assert record.do(jobs.request_cancel, record.epoch, id).state == JobState.CANCELLED


@pytest.mark.parametrize("id", ["01a20484-172b-7bac-8297-87adb69ed195", "no id", ""])
def test_what_is_no_job_cannot_be_cancelled_or_shown(record, id):
    assert record.do(jobs.request_cancel, record.epoch, id) is None
    assert record.do(job_pages.get, id) is None
    assert record.do(events.of_job, id) == []
