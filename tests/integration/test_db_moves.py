"""Illegal moves are impossible, and the history tells the state: every operation in every state, and at random."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from cyxwiz_tasks.states import JOB_MOVES, AttemptState, Cause, JobState
from db import attempts, events, job_messages, job_pages, jobs
from db.attempts import Assigned
from db.job_messages import StoredMessage
from db.models import NodeState
from tests.integration.record import Record, new_job

PAST = datetime.now(UTC) - timedelta(minutes=1)
Operation = Callable[[Record, str, Assigned], object]


def ending(state: AttemptState, job_state: JobState) -> Operation:
    return lambda record, id, place: record.end(place, state, job_state)


def taken_back(job_state: JobState) -> Operation:
    return lambda record, id, place: record.do(
        attempts.unplace, record.epoch, [place.token], Cause.NODE_LOST, None, job_state
    )


# What an operation does where it does anything: state before -> state after.
OPERATIONS: dict[str, tuple[Operation, dict[str, str]]] = {
    "accept again": (lambda record, id, place: record.accept(new_job(id)), {}),
    "assign": (lambda record, id, place: record.assign(id), {"pending": "assigned"}),
    "start": (lambda record, id, place: record.start(place), {"assigned": "running"}),
    "complete": (
        ending(AttemptState.COMPLETED, JobState.COMPLETED),
        {"assigned": "completed", "running": "completed"},
    ),
    "fail": (ending(AttemptState.FAILED, JobState.FAILED), {"assigned": "failed", "running": "failed"}),
    "retry": (ending(AttemptState.FAILED, JobState.PENDING), {"assigned": "pending", "running": "pending"}),
    "end held": (ending(AttemptState.FAILED, JobState.HELD), {"assigned": "held", "running": "held"}),
    "end cancelled": (
        ending(AttemptState.CANCELLED, JobState.CANCELLED),
        {"assigned": "cancelled", "running": "cancelled"},
    ),
    "lose": (taken_back(JobState.PENDING), {"assigned": "pending", "running": "pending"}),
    "lose for good": (taken_back(JobState.FAILED), {"assigned": "failed", "running": "failed"}),
    "lose and hold": (taken_back(JobState.HELD), {"assigned": "held", "running": "held"}),
    "cancel waiting": (
        lambda record, id, place: record.do(jobs.cancel_waiting, record.epoch, [id]),
        {"pending": "cancelled", "held": "cancelled"},
    ),
    "request cancel": (
        lambda record, id, place: record.do(jobs.request_cancel, record.epoch, id),
        {"pending": "cancelled", "held": "cancelled"},
    ),
    "expire": (lambda record, id, place: record.do(jobs.expire, record.epoch), {"pending": "cancelled"}),
    "fail waiting": (
        lambda record, id, place: record.do(jobs.fail_waiting, record.epoch, [id], Cause.ERROR, "no node has so much"),
        {"pending": "failed", "held": "failed"},
    ),
    "hold": (
        lambda record, id, place: record.do(jobs.hold, record.epoch, [id], Cause.CRASHED, "crashed two nodes"),
        {"pending": "held"},
    ),
    "release": (lambda record, id, place: record.do(jobs.release, record.epoch, [id]), {"held": "pending"}),
    "replace message": (
        lambda record, id, place: record.do(job_messages.replace_message, id, StoredMessage({}, "", {}), None),
        {},
    ),
    "renew": (lambda record, id, place: record.do(attempts.renew, [record.node_id], 15.0), {}),
}
NOBODY = "00000000-0000-7000-8000-000000000000"


@pytest.mark.parametrize("state", list(JobState))
def test_every_operation_in_every_state(record, state):
    for name, (operation, effects) in OPERATIONS.items():
        id, place = record.in_state(state)
        record.do(
            lambda tx, id=id: tx.execute(
                text("UPDATE jobs SET expires_at = :past WHERE id = :id"), {"past": PAST, "id": id}
            )
        )
        before = [event for event in record.do(events.of_job, id) if event["to_state"]]
        operation(record, id, place or Assigned(id, 999_999, 1, NOBODY))
        after = [event for event in record.do(events.of_job, id) if event["to_state"]]
        expected = effects.get(state, str(state))
        assert record.state(id) == expected, (state, name)
        moved = after[len(before) :]
        assert [(event["from_state"], event["to_state"]) for event in moved] == (
            [(state, expected)] if expected != state else []
        ), (state, name)
        assert expected == state or JobState(expected) in JOB_MOVES[state]
    assert record.broken_rules() == {}


def test_every_legal_move_has_an_operation():
    made = {(before, after) for _, effects in OPERATIONS.values() for before, after in effects.items()}
    assert made == {(str(a), str(b)) for a, targets in JOB_MOVES.items() for b in targets}


@pytest.mark.parametrize("seed", range(6))
def test_the_state_is_the_fold_of_the_events_after_any_operations(record, seed):
    dice = random.Random(seed)
    ids = [answer.job_id for answer in record.accept(*(new_job(expires_at=PAST) for _ in range(4)))]
    places: dict[str, list[Assigned]] = {id: [Assigned(id, 999_999, 1, NOBODY)] for id in ids}
    choices = [operation for name, (operation, _) in OPERATIONS.items() if name not in ("expire", "request cancel")]
    for _ in range(60):
        id = dice.choice(ids)
        if dice.random() < 0.35:
            if place := record.assign(id).get(id):
                places[id].append(place)
        else:
            # Now the newest attempt, now an older one, as reports come late.
            dice.choice(choices)(record, id, dice.choice([*places[id], *places[id][-1:] * 3]))
        if dice.random() < 0.05:
            record.do(jobs.request_cancel, record.epoch, id)
    assert record.broken_rules() == {}
    for id in ids:
        moves = [event for event in record.do(events.of_job, id) if event["to_state"]]
        state = None
        for event in moves:
            assert event["from_state"] == state
            state = event["to_state"]
        assert state == record.state(id)
    assert sum(record.do(job_pages.counts).values()) == len(ids)


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [("jobs", "state", "asleep"), ("jobs", "cause", "fate"), ("jobs", "priority", 4), ("attempts", "state", "held")],
)
def test_the_tables_refuse_what_the_enums_do_not_have(record, table, column, value):
    record.in_state(JobState.RUNNING)
    with pytest.raises(Exception, match=f"ck_{table}_{column}"):
        record.do(lambda tx: tx.execute(text(f"UPDATE {table} SET {column} = :value"), {"value": value}))


def test_an_events_state_is_one_of_what_it_tells_of(record):
    statement = text("INSERT INTO events (node_id, epoch, to_state, actor) VALUES (:id, 1, :state, 'test')")
    record.do(lambda tx: tx.execute(statement, {"id": NOBODY, "state": NodeState.SUSPECT}))
    with pytest.raises(Exception, match="ck_events_to_state"):
        record.do(lambda tx: tx.execute(statement, {"id": NOBODY, "state": JobState.PENDING}))
