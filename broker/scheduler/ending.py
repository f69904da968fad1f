"""What becomes of a job whose attempt is over: it waits again, is held, or ends; and whoever watches it is told.

A node's Celery worker says the last word on what it ran to its end. For everything else nobody does, so it is done
here: for jobs that were cancelled while they waited or expired, whose node was lost, or that are tried again.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict

from broker.scheduler import gang_members
from broker.scheduler.backlog import Waiting
from broker.scheduler.judging import judge, lost
from broker.scheduler.log_lines import line
from broker.scheduler.retry_policy import Decision, Fail, Hold, Retry
from broker.scheduler.telling import Outcome
from broker.scheduler.turn import Turn
from cyxwiz_tasks import failpoints
from cyxwiz_tasks.protocol.controls import Stop
from cyxwiz_tasks.protocol.updates import Update
from cyxwiz_tasks.states import ACCEPTED, CELERY_STATES, RETRY, Cause, JobState
from db import attempts

log = logging.getLogger(__name__)

#: what each decision makes of a job
JOB_STATES: dict[type[Decision], JobState] = {
    Retry: JobState.PENDING,
    Fail: JobState.FAILED,
    Hold: JobState.HELD,
}


def lose(turn: Turn, holders: list[str], cause: Cause, message: str, *, stop: bool = False) -> int:
    """Take back the attempts that these hold their places for, and do with each job what the rules say.

    With `stop` their nodes are told to end what they run. Returns how many attempts were taken back.
    """
    found = [turn.memory.live[name] for name in holders]
    members = [live for live in found if live.gang]
    taken = gang_members.take_back(turn, members, cause, message, stop=stop) if members else 0
    taken += _lose(turn, [live.job_id for live in found if not live.gang], cause, message, stop)
    turn.counts["lost"] += taken
    return taken


def _lose(turn: Turn, job_ids: list[str], cause: Cause, message: str, stop: bool) -> int:
    alike: dict[Decision, list[str]] = defaultdict(list)
    for job_id, verdict in judge(turn, {id: lost(turn, id, cause, message) for id in job_ids}).items():
        alike[verdict.decision].append(job_id)
    taken = sum(_take_back(turn, ids, decision, cause, message, stop) for decision, ids in alike.items())
    failpoints.hit("scheduler.losing")
    return taken


def _take_back(turn: Turn, ids: list[str], decision: Decision, cause: Cause, message: str, stop: bool) -> int:
    memory = turn.memory
    told = job_message(decision, message)
    pause_seconds = decision.after_seconds if isinstance(decision, Retry) else 0.0
    settled = attempts.unplace(
        turn.tx,
        turn.epoch,
        [memory.live[id].token for id in ids],
        cause,
        message,
        JOB_STATES[type(decision)],
        pause_seconds or None,
        told,
    )
    turn.look_up([one.job_id for one in settled])
    for one in settled:
        live = memory.ended(one.job_id)
        assert live is not None
        log.info(line("attempt_lost", job=one.job_id, token=one.token, node=live.node_id, cause=cause))
        if stop:
            turn.outbox.control(live.node_id, Stop(job=one.job_id, token=live.token, grace_seconds=0))
        if one.job_state == JobState.PENDING:
            wait_again(turn, one.job_id, live.waiting, message, pause_seconds=pause_seconds)
        elif one.job_state == JobState.HELD:
            set_aside(turn, one.job_id, told or message)
        elif one.job_state is not None:
            end = Cause.CANCELLED if one.job_state == JobState.CANCELLED else cause
            finish(turn, one.job_id, one.job_state, end, told or message)
    return len(settled)


def job_message(decision: Decision, message: str) -> str | None:
    """What a job's page says where it is more than how the attempt ended."""
    match decision:
        case Hold(story):
            return story
        case Fail(remark) if remark:
            return f"{message.rstrip('. ')} ({remark})"
        case _:
            return None


def wait_again(
    turn: Turn,
    job_id: str,
    waiting: Waiting,
    message: str,
    *,
    pause_seconds: float = 0.0,
    failed: Outcome | None = None,
) -> None:
    """A job goes back to the queue, and whoever watches it is told why.

    `failed`: how its attempt failed, where that is the reason; Celery shows RETRY then.
    """
    turn.memory.wait(waiting, time.monotonic() + pause_seconds if pause_seconds else None)
    say_again(turn, job_id, message, failed)


def say_again(turn: Turn, job_id: str, message: str, failed: Outcome | None) -> None:
    """Tell whoever watches a job that it waits again."""
    turn.look_up([job_id])
    state = ACCEPTED if failed is None else RETRY
    if turn.wants_result(job_id):
        if failed is None:
            turn.outbox.state(job_id, state, {"message": message})
        else:
            turn.outbox.retry(job_id, failed.error, failed.traceback)
    turn.outbox.update(job_id, Update(kind="state", state=state, message=message, at=time.time()))


def set_aside(turn: Turn, job_id: str, story: str) -> None:
    """Tell whoever watches a job that it is held."""
    turn.look_up([job_id])
    if turn.wants_result(job_id):
        turn.outbox.state(job_id, ACCEPTED, {"message": story})
    turn.outbox.update(job_id, Update(kind="state", state=ACCEPTED, message=story, at=time.time()))
    turn.counts["held"] += 1
    log.warning(line("job_held", job=job_id, story=story))


def finish(turn: Turn, job_id: str, state: JobState, cause: Cause, message: str) -> None:
    """Tell the world that a job has ended which no node will speak for."""
    say_last_word(turn, job_id, Outcome(state, message=message or str(cause), cause=str(cause)))
    turn.outbox.update(job_id, Update(kind="end", state=CELERY_STATES[state], message=message or None, at=time.time()))


def say_last_word(turn: Turn, job_id: str, outcome: Outcome) -> None:
    """Tell Celery, and who waits there, how a job ended."""
    turn.forget(job_id)
    turn.look_up([job_id])
    turn.outbox.last_word(job_id, turn.messages.get(job_id), outcome)
