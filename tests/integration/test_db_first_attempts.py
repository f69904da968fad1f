"""Jobs that are recorded together with their first attempt: the same record as if they had waited in between."""

from __future__ import annotations

import pytest

from cyxwiz_tasks.errors import NotLeader
from cyxwiz_tasks.states import AttemptState, JobState
from db import attempts, events, first_attempts, job_messages
from db.attempts import NewAttempt
from tests.integration.record import LEASE_SECONDS, new_job


def place(record, *new, epoch=None):
    places = [
        NewAttempt(
            record.node_id,
            "i1",
            (0, 1),
            1 << 30,
            2,
            1 << 31,
            job_id=job.id,
            scores={"score": 0.5, "next": [["b", 0.4]]},
        )
        for job in new
    ]
    return record.do(first_attempts.accept_placed, epoch or record.epoch, new, places, LEASE_SECONDS)


def test_the_record_is_that_of_a_job_that_waited_and_was_placed(record):
    at_once, waited = new_job(name="mine", priority=3, time_limit_seconds=60.0), new_job(name="mine", priority=3)
    found = place(record, at_once)[at_once.id]
    [accepted] = record.accept(waited)
    record.assign(waited.id)
    job, other = record.job(at_once.id), record.job(waited.id)
    assert (job["state"], job["node"], job["attempts"], job["token"]) == ("assigned", "one", 1, found.token)
    assert (job["name"], job["priority"], job["time_limit_seconds"]) == ("mine", "critical", 60.0)
    assert {name for name, value in job.items() if value is None} <= {n for n, value in other.items() if value is None}
    [attempt] = job["attempt_list"]
    assert (attempt["token"], attempt["gpus"], attempt["cpus"]) == (found.token, [0, 1], 2)
    assert attempt["scores"] == {"score": 0.5, "next": [["b", 0.4]]}
    moves = [
        [(event["from_state"], event["to_state"], event["actor"], event["attempt"]) for event in record.do(of, id)]
        for of, id in ((events.of_job, at_once.id), (events.of_job, waited.id))
    ]
    assert moves[0] == moves[1]
    assert found.seq < accepted.seq
    assert record.do(job_messages.messages, [at_once.id])[at_once.id].body == at_once.body
    assert [live.job_id for live in record.do(attempts.live)] == [at_once.id, waited.id]
    assert record.broken_rules() == {}


def test_several_keep_their_order_and_go_on_like_any_other(record):
    new = [new_job() for _ in range(20)]
    found = place(record, *new)
    assert [found[job.id].seq for job in new] == sorted(first.seq for first in found.values())
    [live] = [live for live in record.do(attempts.live) if live.job_id == new[3].id]
    assert record.start(live) == {live.token}
    assert record.end(live, AttemptState.COMPLETED, JobState.COMPLETED).committed
    assert record.broken_rules() == {}


def test_nothing_is_recorded_if_one_is_known(record):
    known, new = new_job(), new_job()
    record.accept(known)
    assert place(record, new, known) == {}
    assert record.state(known.id) == JobState.PENDING
    assert record.do(job_messages.messages, [new.id]) == {}
    assert place(record, new).keys() == {new.id}
    assert place(record, new) == {}
    assert record.broken_rules() == {}


def test_another_epoch_records_nothing(record):
    job = new_job()
    with pytest.raises(NotLeader, match="epoch 99 is over"):
        place(record, job, epoch=99)
    assert record.do(job_messages.messages, [job.id]) == {}
