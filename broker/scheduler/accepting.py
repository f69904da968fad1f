"""Messages of the inbox become jobs in the record."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from broker.scheduler import unblocking
from broker.scheduler.inbox import Batch
from broker.scheduler.log_lines import line
from broker.scheduler.memory import waiting_arrival
from broker.scheduler.messages import Arrival, Refused, read
from broker.scheduler.retrying import start_over
from broker.scheduler.turn import Turn
from cyxwiz_tasks.errors import CyxwizError, InvalidJob, JobConflict, ProtocolError
from cyxwiz_tasks.protocol.names import HEADER
from cyxwiz_tasks.protocol.updates import Ack
from cyxwiz_tasks.states import ACCEPTED, CELERY_STATES, JobState, Priority
from db import arrays, dependencies, new_jobs
from db.job_messages import StoredMessage
from db.new_jobs import Accepted, NewJob

log = logging.getLogger(__name__)

_RANKS = {priority: priority.rank for priority in Priority}


@dataclass
class Submission:
    """One readable message and the record's word on it."""

    arrival: Arrival
    answer: Accepted


def prepare(raw: bytes) -> tuple[Arrival, NewJob] | Refused:
    """A message on its way to `accept`: read, or why it cannot be."""
    try:
        arrival = read(raw)
        job = _new_job(arrival)
        _ = job.row  # made here, in the source's thread, so that the loop finds it ready
        return arrival, job
    except Refused as refused:
        return refused
    except Exception as error:
        # Reading needs nothing but the message: that is to blame, and no turn need fail to find it out.
        log.exception(line("message_unreadable", bytes=len(raw)))
        return Refused(ProtocolError(f"the message cannot be read: {type(error).__name__}"))


def accept(turn: Turn, batch: Batch, *, within_limits: bool = False) -> list[Submission]:
    """Record the jobs of a prepared batch; those that may start wait in memory afterwards. Refuses what is no job.

    `within_limits`: somebody has asked already whether their owners may submit them.
    """
    good: list[tuple[Arrival, NewJob]] = []
    for raw, prepared in zip(batch.messages, batch.readings, strict=True):
        if isinstance(prepared, Refused):
            _refuse(turn, batch.source, raw, prepared)
        else:
            good.append(prepared)
    if any(arrival.header.after for arrival, _ in good):
        good = _after_known_jobs(turn, batch.source, good)
    if not within_limits:
        good = _within_limits(turn, batch.source, good)
    if any(arrival.header.array is not None for arrival, _ in good):
        arrays.record(turn.tx, {a.header.array.id: (a.header.array, a.header.owner) for a, _ in good if a.header.array})
    answers = new_jobs.accept(turn.tx, turn.epoch, [job for _, job in good])
    submissions = [Submission(arrival, answer) for (arrival, _), answer in zip(good, answers, strict=True)]
    for submission in submissions:
        if submission.answer.created:
            _let_wait(turn, submission)
        elif submission.arrival.retries:
            start_over(turn, submission.arrival, submission.answer)
    unblocking.record(turn, [submission.arrival for submission in submissions if submission.answer.created])
    turn.counts["accepted"] += sum(answer.created for answer in answers)
    return submissions


def _within_limits(turn: Turn, source: str, given: list[tuple[Arrival, NewJob]]) -> list[tuple[Arrival, NewJob]]:
    """Those that their owners may still submit, and such as are known already. Refuses others."""
    refusals = turn.memory.too_many([job.owner for _, job in given])
    if not refusals:
        return given
    known = new_jobs.recorded(turn.tx, [given[at][1] for at in refusals])
    good: list[tuple[Arrival, NewJob]] = []
    for at, (arrival, job) in enumerate(given):
        if at in refusals and job.id not in known:
            refused = Refused(refusals[at], arrival.id, arrival.header.reply_to)
            _refuse(turn, source, arrival.envelope.encode("utf-8", "surrogatepass"), refused)
        else:
            good.append((arrival, job))
    return good


def _after_known_jobs(turn: Turn, source: str, jobs: list[tuple[Arrival, NewJob]]) -> list[tuple[Arrival, NewJob]]:
    """Those of these jobs that come after none, or after known ones and such as stand before them. Refuses others."""
    known = dependencies.known(turn.tx, sorted({after.id for arrival, _ in jobs for after in arrival.header.after}))
    good: list[tuple[Arrival, NewJob]] = []
    for arrival, job in jobs:
        missing = next((after.id for after in arrival.header.after if after.id not in known), None)
        if missing is None:
            good.append((arrival, job))
            known |= {arrival.id, arrival.header.array.id} if arrival.header.array else {arrival.id}
        else:
            error = InvalidJob("after", f"there is no job or array {missing}", "`cyxwiz jobs` lists jobs")
            _refuse(turn, source, arrival.envelope.encode(), Refused(error, arrival.id, arrival.header.reply_to))
    return good


def acknowledge(turn: Turn, submissions: list[Submission]) -> None:
    """Tell senders and watchers, after placement, what became of these messages."""
    memory, outbox = turn.memory, turn.outbox
    waiting: list[str] = []
    for submission in submissions:
        arrival, answer = submission.arrival, submission.answer
        if answer.conflict:
            _acknowledge_conflict(turn, arrival)
        elif answer.job_id != arrival.id:
            state = CELERY_STATES[_state_now(turn, answer)]
            outbox.ack(arrival.header.reply_to, Ack(id=arrival.id, job=answer.job_id, state=state))
        else:
            outbox.recorded(arrival.header.reply_to, arrival.id)
            if arrival.ignore_result or answer.state != JobState.PENDING or arrival.id in memory.live:
                continue
            if answer.created:
                waiting.append(arrival.id)
            else:
                # A message that is handled again after a crash must not take back what was said since.
                outbox.state(arrival.id, ACCEPTED, {}, only_if_none=True)
    outbox.states(waiting, ACCEPTED, {})


def _state_now(turn: Turn, answer: Accepted) -> JobState:
    live = turn.memory.live.get(answer.job_id)
    if live is None:
        return answer.state
    return JobState.RUNNING if live.running else JobState.ASSIGNED


def _let_wait(turn: Turn, submission: Submission) -> None:
    arrival, answer = submission.arrival, submission.answer
    turn.messages[arrival.id] = StoredMessage(arrival.headers, arrival.body, arrival.properties)
    turn.memory.deadlines.expect(arrival.id, arrival.header.deadline_seconds)
    if (array := arrival.header.array) is not None:
        turn.memory.arrays.join(arrival.id, array.id, array.at_most, array.early_stopping)
    for dependency in unblocking.dependencies_of(arrival):
        turn.memory.dependencies.expect(arrival.id, dependency.on_id)
    if turn.memory.expect_expiry(arrival.id, arrival.expires_at, arrival.header.start_by_seconds):
        turn.memory.wait_until(waiting_arrival(arrival, answer.seq), arrival.not_before)


def _new_job(arrival: Arrival) -> NewJob:
    header = arrival.header
    try:
        return NewJob(
            id=arrival.id,
            task=arrival.task,
            resources=arrival.headers[HEADER].get("resources") or {},
            shape=header.resources.shape,
            headers=arrival.headers,
            body=arrival.body,
            properties=arrival.properties,
            digest=arrival.digest,
            priority=_RANKS[header.priority],
            entry=header.entry,
            name=header.name,
            owner=header.owner,
            project=header.project,
            idempotency_key=header.idempotency_key,
            not_before=arrival.not_before,
            expires_at=arrival.expires_at,
            time_limit_seconds=arrival.time_limit_seconds,
            start_by_seconds=header.start_by_seconds,
            deadline_seconds=header.deadline_seconds,
            array_id=header.array.id if header.array is not None else None,
            array_index=header.array_index if header.array is not None else None,
            envelope=arrival.envelope,
        )
    except CyxwizError as error:
        raise Refused(error, arrival.id, header.reply_to) from None


def _refuse(turn: Turn, source: str, raw: bytes, refused: Refused) -> None:
    error = refused.error
    turn.counts["refused"] += 1
    log.warning(line("message_refused", source=source, id=refused.id, error=type(error).__name__, reason=str(error)))
    turn.outbox.reject(source, raw, str(error))
    if refused.id is not None:
        turn.outbox.failure(refused.id, error, only_if_none=True)
        ack = Ack(id=refused.id, error_type=type(error).__name__, error=str(error))
        turn.outbox.ack(refused.reply_to, ack)


def _acknowledge_conflict(turn: Turn, arrival: Arrival) -> None:
    error = JobConflict(f"id: {arrival.id} is the id of a different job: choose another one, or leave it out")
    log.warning(line("job_conflict", id=arrival.id))
    ack = Ack(id=arrival.id, error_type=type(error).__name__, error=str(error))
    turn.outbox.ack(arrival.header.reply_to, ack)
