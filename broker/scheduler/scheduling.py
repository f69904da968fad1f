"""Schedules: added and removed by clients, fired by a duty.

A firing records its job and moves the schedule on in one transaction, and the job's id follows from the schedule and
the moment: whatever crashes or is done twice, a moment has one job at most.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

from broker.scheduler import accepting
from broker.scheduler.inbox import Batch
from broker.scheduler.log_lines import line
from broker.scheduler.messages import Refused, read
from broker.scheduler.turn import Turn
from cyxwiz_tasks.errors import InvalidJob, LimitReached, NotFound
from cyxwiz_tasks.protocol.commands import AddSchedule
from cyxwiz_tasks.protocol.names import INBOX
from db import new_jobs, schedules
from db.schedules import Due

log = logging.getLogger(__name__)

#: a firing that is later than this was missed: the time in which a standby takes over is no reason to skip one
LATE = timedelta(seconds=60)
#: one whose next moment nobody can tell is looked at again after so long
_UNUSABLE = timedelta(days=1)
#: a job that its owner's limits refuse is tried again after so long, until the schedule's next moment has come
AGAIN = timedelta(seconds=30)


def add(turn: Turn, command: AddSchedule) -> dict[str, Any]:
    """Keep a new schedule; its record. Raises InvalidJob, ProtocolError."""
    from broker.scheduler.cron import next_after  # only a scheduler with schedules needs cronsim

    try:
        arrival = read(command.message.encode("utf-8", "surrogatepass"))
    except Refused as refused:
        raise refused.error from None
    if arrival.id != command.id:
        raise InvalidJob("message", f"has the id {arrival.id} and not the schedule's, {command.id}")
    for option, moment in (("expires", arrival.expires_at), ("countdown", arrival.not_before)):
        if moment is not None:
            # In Celery's messages they are moments: soon all jobs of the schedule would be past them.
            raise InvalidJob(
                option, "is a moment, and each job of a schedule has its own", 'Leave it out, or write start_by="1h"'
            )
    added = schedules.add(
        turn.tx,
        name=command.name,
        id=command.id,
        owner=arrival.header.owner,
        cron=command.cron,
        timezone=command.timezone,
        catch_up=command.catch_up,
        envelope=command.message,
        next_at=next_after(command.cron, command.timezone, schedules.now(turn.tx)),
    )
    if not added:
        raise InvalidJob(
            "name", f"there is a schedule {command.name!r}", f"Remove it first: cyxwiz schedule remove {command.name}"
        )
    turn.memory.expect_firing(schedules.next_in_seconds(turn.tx))
    log.info(line("schedule_added", name=command.name, cron=command.cron))
    return schedules.find(turn.tx, command.name)[0] | {"refused": False}


def remove(turn: Turn, name: str) -> None:
    """Forget a schedule; its jobs go on. Raises NotFound."""
    if not schedules.remove(turn.tx, name):
        raise NotFound(f"there is no schedule {name!r}: `cyxwiz schedules` lists what there is")
    turn.memory.expect_firing(schedules.next_in_seconds(turn.tx))
    log.info(line("schedule_removed", name=name))


def fire(turn: Turn) -> int:
    """Send the jobs of schedules that are due; how many there were. Of moments that were missed, one counts."""
    fired = 0
    for due in schedules.due(turn.tx):
        job_id, what, next_at = None, "skipped", _next(due)
        if due.catch_up or due.now - due.next_at <= LATE:
            try:
                job_id = _send(turn, due)
            except LimitReached:
                next_at = min(next_at, due.now + AGAIN)
            what = job_id or "refused"
            fired += job_id is not None
        schedules.move_on(turn.tx, due.name, next_at, job_id)
        log.info(line("schedule_due", name=due.name, moment=due.next_at.isoformat(), job=what))
    turn.memory.expect_firing(schedules.next_in_seconds(turn.tx))
    return fired


def _send(turn: Turn, due: Due) -> str | None:
    """The id of the job of this moment; None: it was refused, as it would be at any other moment.

    Raises LimitReached where its owner may have no more jobs for now.
    """
    job_id = firing_id(due.id, due.next_at)
    raw = due.envelope.replace(due.id, job_id).encode("utf-8", "surrogatepass")
    prepared = accepting.prepare(raw)
    if isinstance(prepared, tuple):
        # Asked here, and not by `accept`: a message of the scheduler's own is not to lie among the rejected ones.
        job = prepared[1]
        for refusal in turn.memory.too_many([job.owner]).values():
            if job.id not in new_jobs.recorded(turn.tx, [job]):
                raise refusal
    accepted = accepting.accept(turn, Batch(INBOX, [raw], [prepared]), within_limits=True)
    turn.submissions += accepted
    return job_id if accepted else None


def waits_for_limits(schedule: Mapping[str, Any]) -> bool:
    """Whether a schedule's next moment is none of its expression's: what its owner's limits refused is tried again."""
    from broker.scheduler.cron import next_after

    next_at = datetime.fromisoformat(schedule["next_at"])
    try:
        return next_after(schedule["cron"], schedule["timezone"], next_at - timedelta(microseconds=1)) != next_at
    except InvalidJob:
        return False


def _next(due: Due) -> datetime:
    """When a schedule is due next. One that cannot be read any more, as after its timezone was dropped, must not keep
    others from being sent.
    """
    from broker.scheduler.cron import next_after

    try:
        return next_after(due.cron, due.timezone, due.now)
    except InvalidJob as error:
        log.error(line("schedule_unusable", name=due.name, reason=str(error)))
        return due.now + _UNUSABLE


def firing_id(schedule_id: str, moment: datetime) -> str:
    """The id of the job of a schedule for one moment."""
    return str(uuid5(UUID(schedule_id), str(int(moment.timestamp()))))
