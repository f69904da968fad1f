"""Jobs that end, or wait again, without a word of the node: cancelled while waiting, expired, or their node was lost.

A node's Celery worker writes the last state of what it ran. For these nobody else does, so it is done here: through
Celery's own backend where a chord or an error callback must learn of it.
"""

from __future__ import annotations

import logging
import time

from broker.scheduler.backlog import Waiting
from broker.scheduler.log_lines import line
from broker.scheduler.telling import Outcome
from broker.scheduler.turn import Turn
from cyxwiz_tasks import failpoints
from cyxwiz_tasks.protocol import Stop, Update
from cyxwiz_tasks.states import ACCEPTED, CELERY_STATES, Cause, JobState
from db import attempts

log = logging.getLogger(__name__)

#: a job that lost its node so often is not tried again: it may be what takes the nodes down
PLACEMENTS_LIMIT = 10


def lose(turn: Turn, job_ids: list[str], cause: Cause, message: str, *, stop: bool = False) -> int:
    """Take back the attempts of these jobs: the jobs wait again, or fail when that has happened too often.

    With `stop` their nodes are told to end what they run. Returns how many attempts were taken back.
    """
    memory = turn.memory
    last_chance_gone = [id for id in job_ids if memory.live[id].number >= PLACEMENTS_LIMIT]
    taken = 0
    for goal, ids in (
        (JobState.FAILED, last_chance_gone),
        (JobState.PENDING, [id for id in job_ids if id not in set(last_chance_gone)]),
    ):
        text = f"{message}; it was placed {PLACEMENTS_LIMIT} times" if goal == JobState.FAILED else message
        tokens = {memory.live[id].token: id for id in ids}
        for settled in attempts.unplace(turn.tx, turn.epoch, list(tokens), cause, text, goal):
            live = memory.ended(settled.job_id)
            assert live is not None
            taken += 1
            log.info(line("attempt_lost", job=settled.job_id, token=settled.token, node=live.node_id, cause=cause))
            if stop:
                turn.outbox.control(live.node_id, Stop(job=settled.job_id, token=live.token, grace_seconds=0))
            if settled.job_state == JobState.PENDING:
                wait_again(turn, settled.job_id, live.waiting, message)
            elif settled.job_state is not None:
                finish(turn, settled.job_id, settled.job_state, cause, text)
    failpoints.hit("scheduler.losing")
    turn.counts["lost"] += taken
    return taken


def wait_again(turn: Turn, job_id: str, waiting: Waiting, message: str, *, pause_seconds: float = 0.0) -> None:
    """A job goes back to the queue, and whoever watches it is told why."""
    turn.memory.wait(waiting, time.monotonic() + pause_seconds if pause_seconds else None)
    turn.look_up([job_id])
    if turn.wants_result(job_id):
        turn.outbox.state(job_id, ACCEPTED, {"message": message})
    turn.outbox.update(job_id, Update(kind="state", state=ACCEPTED, message=message, at=time.time()))


def finish(turn: Turn, job_id: str, state: JobState, cause: Cause, message: str) -> None:
    """Tell the world that a job has ended which no node will speak for."""
    turn.look_up([job_id])
    outcome = Outcome(state, message=message or str(cause), cause=str(cause))
    turn.outbox.last_word(job_id, turn.messages.get(job_id), outcome)
    turn.outbox.update(job_id, Update(kind="end", state=CELERY_STATES[state], message=message or None, at=time.time()))
