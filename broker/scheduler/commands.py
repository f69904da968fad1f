"""What clients ask of the leader: cancel a job, release one that is held, explain where it stands, empty a node."""

from __future__ import annotations

import logging
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from sqlalchemy.exc import DBAPIError

from broker.scheduler import draining, explaining, quota_commands, releasing, scheduling, sharing, stopping
from broker.scheduler.ending import finish
from broker.scheduler.failures import is_poison, where
from broker.scheduler.log_lines import line
from broker.scheduler.revokes import Revoke
from broker.scheduler.turn import Turn
from cyxwiz_tasks.errors import CyxwizError, NotFound, ProtocolError
from cyxwiz_tasks.protocol.commands import (
    AddSchedule,
    Cancel,
    CancelArray,
    Drain,
    Quotas,
    Release,
    RemoveSchedule,
    SetLimits,
    SetQuota,
    Undrain,
    Usage,
    Why,
)
from cyxwiz_tasks.protocol.queries import Reply
from cyxwiz_tasks.states import ACCEPTED, CELERY_STATES, Cause, JobState
from db import arrays, jobs
from db.reports import known_id

log = logging.getLogger(__name__)

_Sharing = SetLimits | Usage | SetQuota | Quotas
_Deed = Cancel | CancelArray | AddSchedule | RemoveSchedule | Release | Drain | Undrain | _Sharing
_Command = _Deed | Why | Revoke
_COMMAND: TypeAdapter[_Command] = TypeAdapter(Annotated[_Command, Field(discriminator="kind")])


def handle(turn: Turn, source: str, raws: list[bytes]) -> None:
    """Do a batch of commands. Questions are answered after placement, by `answer`."""
    for raw in raws:
        try:
            command = _COMMAND.validate_json(raw)
        except ValidationError as error:
            reason = f"{error.errors()[0]['type']}: {error.errors()[0]['msg']}"
            turn.outbox.reject(source, raw, reason)
            log.warning(line("command_refused", reason=reason))
            continue
        match command:
            case Why():
                turn.questions.append(command)
            case Revoke():
                _revoke(turn, command)
            case _:
                turn.outbox.reply(command.reply_to, _done(turn, command))


def answer(turn: Turn, question: Why) -> None:
    """Reply to `why` with what the leader knows now."""
    try:
        reply = Reply(value=explaining.answer(turn, question))
    except CyxwizError as error:
        reply = _refusal(error)
    except Exception as error:
        if not is_poison(error) or isinstance(error, DBAPIError):
            raise  # the transaction is of no use any more
        # It only reads: all that was done in this turn stands, and needs no second try without the question.
        log.exception(line("question_failed", job=question.job, where=where(error)))
        reply = _refusal(
            ProtocolError(f"the scheduler failed on this question ({type(error).__name__}): its log says more")
        )
    turn.outbox.reply(question.reply_to, reply)


def _done(turn: Turn, command: _Deed) -> Reply:
    try:
        return Reply(value=_value(turn, command))
    except CyxwizError as error:
        return _refusal(error)


def _value(turn: Turn, command: _Deed) -> Any:
    value: Any
    match command:
        case Cancel():
            value = {"state": cancel(turn, command.job, command.reason)}
        case CancelArray():
            value = {"jobs": cancel_array(turn, command.array, command.reason)}
        case AddSchedule():
            value = scheduling.add(turn, command)
        case RemoveSchedule():
            scheduling.remove(turn, command.name)
            value = {"removed": command.name}
        case Release():
            releasing.release(turn, command.job)
            value = {"state": ACCEPTED}
        case Drain():
            value = draining.drain(turn, command)
        case Undrain():
            value = draining.undrain(turn, command)
        case SetLimits():
            value = sharing.set_limits(turn, command)
        case Usage():
            value = sharing.usage(turn)
        case SetQuota():
            value = quota_commands.set_quota(turn, command)
        case Quotas():
            value = quota_commands.quotas(turn)
    return value


def _revoke(turn: Turn, command: Revoke) -> None:
    """End those of these jobs that wait, all by one statement: a broadcast may name as many as are recorded. It names
    tasks of other applications, too.
    """
    ids = [job_id for job_id in dict.fromkeys(map(known_id, command.jobs)) if job_id is not None]
    live = {job_id: turn.memory.live[job_id] for job_id in ids if job_id in turn.memory.live}
    _cancel_waiting(turn, [job_id for job_id in ids if job_id not in live], "revoked")
    for job_id, attempt in live.items():
        if command.terminate or not attempt.running:
            cancel(turn, job_id, "revoked")


def _cancel_waiting(turn: Turn, job_ids: list[str], message: str) -> int:
    """End those of these jobs that have no attempt under way; how many did."""
    waiting = jobs.cancel_waiting(turn.tx, turn.epoch, job_ids, message=message)
    turn.look_up(waiting)
    for job_id in waiting:
        turn.memory.stop_waiting(job_id)
        finish(turn, job_id, JobState.CANCELLED, Cause.CANCELLED, message)
    turn.counts["cancelled"] += len(waiting)
    return len(waiting)


def cancel(turn: Turn, job_id: str, reason: str) -> str:
    """End a job that waits, or tell its node to. Returns Celery's name of the state that it has now, as a text.

    Raises NotFound.
    """
    outcome = jobs.request_cancel(turn.tx, turn.epoch, job_id, reason)
    if outcome is None:
        raise NotFound(f"there is no job {job_id}: `cyxwiz jobs` lists what there is")
    if outcome.state == JobState.CANCELLED and outcome.before != JobState.CANCELLED:
        turn.memory.stop_waiting(job_id)
        finish(turn, job_id, JobState.CANCELLED, Cause.CANCELLED, reason)
        turn.counts["cancelled"] += 1
    elif (live := turn.memory.live.get(job_id)) is not None:
        stopping.cancel(turn, live)
        turn.counts["stopping"] += 1
    log.info(line("cancel", job=job_id, before=outcome.before, state=outcome.state))
    return CELERY_STATES[outcome.state]


def cancel_array(turn: Turn, array_id: str, reason: str) -> int:
    """End what has not ended of an array; how many jobs that was. Raises NotFound."""
    if arrays.get(turn.tx, array_id) is None:
        raise NotFound(f"there is no array {array_id}: `cyxwiz jobs --json` shows the array_id of jobs")
    going_on = arrays.going_on(turn.tx, array_id)
    live = [job_id for job_id in going_on if job_id in turn.memory.live]
    # Those that wait go at once, all by one statement.
    message = reason or "its array was cancelled"
    waiting = _cancel_waiting(turn, going_on, message)
    for job_id in live:
        cancel(turn, job_id, message)
    return waiting + len(live)


def _refusal(error: CyxwizError) -> Reply:
    return Reply(error_type=type(error).__name__, error=str(error))
