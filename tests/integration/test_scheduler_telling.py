"""The last word on a job that no node speaks for, as Celery's own clients see it."""

from __future__ import annotations

import json
from collections import deque

import pytest
from celery import chain, chord
from celery.exceptions import TaskRevokedError

from broker.scheduler.messages import read
from broker.scheduler.outbox import Outbox
from broker.scheduler.telling import Outcome, awaited, tell
from cyxwiz_tasks.errors import JobFailed
from cyxwiz_tasks.protocol.names import INBOX
from cyxwiz_tasks.states import JobState
from db.job_messages import StoredMessage

DONE = Outcome(JobState.COMPLETED, result={"sum": 3})
RAISED = Outcome(
    JobState.FAILED, message="ZeroDivisionError: by 0", exception="builtins.ZeroDivisionError", traceback="Trace ..."
)


def sent(plane, count):
    """The oldest messages of the inbox, by what they are called with."""
    return [json.loads(raw) for raw in reversed(plane.redis.lrange(INBOX, -count, -1))]


def stored(message):
    arrival = read(json.dumps(message).encode())
    return StoredMessage(arrival.headers, arrival.body, arrival.properties)


def say(plane, message, outcome, times=1):
    """What the leader does with one outcome."""
    for _ in range(times):
        outbox = Outbox(3600, epoch=1)
        outbox.last_word(message.headers["id"], message, outcome)
        pipe = plane.redis.pipeline(transaction=False)
        outbox.write(pipe)
        pipe.execute()
        tell(plane.app, outbox.last_words)
        assert not outbox.last_words
    return plane.app.AsyncResult(message.headers["id"])


@pytest.fixture
def alone(plane):
    return stored(plane.redis_message(plane.signature(1)))


def test_a_job_that_nobody_waits_for_has_its_state_alone(plane, alone):
    assert awaited(alone, DONE) is None
    assert say(plane, alone, DONE).get(timeout=5) == {"sum": 3}


def test_a_failure_is_the_jobs_own_exception(plane, alone):
    result = say(plane, alone, RAISED)
    with pytest.raises(ZeroDivisionError, match=r"^by 0$"):
        result.get(timeout=5)
    assert result.traceback == "Trace ..."


def test_a_failure_without_an_exception_is_ours(plane, alone):
    result = say(plane, alone, Outcome(JobState.FAILED, message="its node is gone", cause="node_lost"))
    with pytest.raises(JobFailed, match="its node is gone"):
        result.get(timeout=5)


def test_a_job_whose_result_nobody_wants_leaves_none(plane):
    quiet = stored(plane.redis_message(plane.signature(1), ignore_result=True))
    assert say(plane, quiet, DONE).state == "PENDING"


@pytest.mark.parametrize("times", [1, 2])
def test_the_next_link_of_a_chain_goes_out_once_with_the_result(plane, times):
    result = chain(plane.signature(1), plane.signature(2), app=plane.app).apply_async()
    [first] = sent(plane, 1)
    assert say(plane, stored(first), DONE, times).get(timeout=5) == {"sum": 3}
    messages = sent(plane, 10)
    assert [message["headers"]["id"] for message in messages] == [result.parent.id, result.id]
    assert read(json.dumps(messages[1]).encode()).id == result.id


def test_a_chain_fails_with_its_first_link(plane):
    result = chain(plane.signature(1), plane.signature(2), app=plane.app).apply_async()
    [first] = sent(plane, 1)
    say(plane, stored(first), RAISED)
    with pytest.raises(ZeroDivisionError):
        result.get(timeout=5)


def test_a_chord_counts_each_part_once(plane):
    body = chord([plane.signature(1), plane.signature(2)], app=plane.app)(plane.signature(0))
    parts = [stored(message) for message in sent(plane, 2)]
    say(plane, parts[0], DONE, times=3)
    assert len(sent(plane, 10)) == 2
    say(plane, parts[1], DONE)
    assert sent(plane, 10)[-1]["headers"]["id"] == body.id


def test_a_callback_and_an_error_callback_are_called(plane):
    for outcome, link in ((DONE, "link"), (RAISED, "link_error")):
        called = plane.signature(7).set(task_id=f"0190b5a0-0000-7000-8000-00000000000{len(link)}")
        message = plane.redis_message(plane.signature(1), **{link: [dict(called)]})
        say(plane, stored(message), outcome)
        assert sent(plane, 10)[-1]["headers"]["id"] == called.options["task_id"]


def test_a_cancelled_part_is_revoked(plane):
    chord([plane.signature(1), plane.signature(2)], app=plane.app)(plane.signature(0))
    part = stored(sent(plane, 1)[0])
    result = say(plane, part, Outcome(JobState.CANCELLED, message="not needed"))
    assert result.state == "REVOKED"
    assert isinstance(result.result, TaskRevokedError)


def test_a_callback_that_cannot_be_called_costs_only_itself(plane, alone, caplog):
    broken = stored(plane.redis_message(plane.signature(1), link=[{"task": 7}]))
    words = deque([awaited(broken, DONE)])
    tell(plane.app, words)
    assert not words
