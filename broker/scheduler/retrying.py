"""A task that retries itself (Celery's `self.retry()`) publishes a message with its own id and one more retry.

That message takes the place of a report: it ends the attempt that sent it and puts the job back into the queue, with
the new body and the new time. A message whose count is not higher than the recorded one is a duplicate.
"""

from __future__ import annotations

import logging

from broker.scheduler.ending import finish
from broker.scheduler.log_lines import line
from broker.scheduler.messages import Arrival
from broker.scheduler.turn import Turn
from cyxwiz_tasks.protocol.controls import Stop
from cyxwiz_tasks.protocol.names import ASSIGNMENT_HEADER
from cyxwiz_tasks.states import TERMINAL_JOB_STATES, AttemptState, Cause, JobState
from db import attempts, gangs, job_messages, waiting_jobs
from db.attempts import Ending
from db.job_messages import StoredMessage
from db.new_jobs import Accepted

log = logging.getLogger(__name__)


def start_over(turn: Turn, arrival: Arrival, answer: Accepted) -> None:
    """Let a job wait again if this message is a newer retry of it; else do nothing."""
    turn.look_up([arrival.id])
    known = turn.messages.get(arrival.id)
    if answer.job_id != arrival.id or known is None or arrival.retries <= (known.headers.get("retries") or 0):
        return
    if answer.state in TERMINAL_JOB_STATES or answer.state == JobState.HELD:
        log.warning(line("retry_ignored", job=arrival.id, state=answer.state, retries=arrival.retries))
        return
    if _is_of_another_attempt(turn, arrival):
        log.warning(line("retry_fenced", job=arrival.id, retries=arrival.retries))
        return
    message = StoredMessage(arrival.headers, arrival.body, arrival.properties)
    job_messages.replace_message(turn.tx, arrival.id, message, arrival.not_before)
    turn.messages[arrival.id] = message
    if _end_attempt(turn, arrival.id, f"the task retries itself, retry {arrival.retries}"):
        turn.memory.stop_waiting(arrival.id)
        # As the record knows it: its attempts may have taught that it needs more than its header asks for.
        for job in waiting_jobs.waiting(turn.tx, [arrival.id]):
            if (waiting := turn.memory.read(job)) is not None:
                turn.memory.wait_until(waiting, arrival.not_before)
        turn.counts["retried"] += 1


def _is_of_another_attempt(turn: Turn, arrival: Arrival) -> bool:
    """Whether an attempt sent this that lost its job meanwhile: it must not end the one that runs now."""
    live, sender = turn.memory.live.get(arrival.id), arrival.headers.get(ASSIGNMENT_HEADER)
    return live is not None and isinstance(sender, dict) and sender.get("token") != live.token


def _end_attempt(turn: Turn, job_id: str, message: str) -> bool:
    """End the job's attempt, if one is under way; whether the job waits now."""
    live = turn.memory.live.get(job_id)
    if live is None:
        return True
    ending = Ending(job_id, live.token, live.node_id, AttemptState.FAILED, JobState.PENDING, Cause.ERROR, message)
    [settled] = attempts.end(turn.tx, turn.epoch, [ending])
    turn.memory.ended(job_id)
    if live.gang:
        gangs.close(turn.tx, [live.token])
    # Its process has ended before it published the retry; this stops one that was placed again in the meantime.
    for one in live.together:
        turn.outbox.control(one.node_id, Stop(job=job_id, token=one.token, grace_seconds=0))
    if settled.job_state == JobState.CANCELLED:
        finish(turn, job_id, JobState.CANCELLED, Cause.CANCELLED, "cancelled before its next try")
    return settled.job_state == JobState.PENDING
