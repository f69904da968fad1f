"""The states of jobs and attempts, the legal moves between them, and the names that Celery shows for them.

The same sets stand in CHECK constraints in `db/models.py` and as a diagram in `docs/states.md`; a test compares them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal


class JobState(StrEnum):
    #: accepted and committed; waits for a node that fits
    PENDING = "pending"
    #: a node was chosen and the message lies in its queue
    ASSIGNED = "assigned"
    #: the job's own process has started
    RUNNING = "running"
    #: ended with a result
    COMPLETED = "completed"
    #: ended without a result; `cause` says why
    FAILED = "failed"
    #: ended because somebody asked for it
    CANCELLED = "cancelled"
    #: broke too many nodes or processes; waits for a person to release it
    HELD = "held"


class AttemptState(StrEnum):
    #: published on a node's queue
    ASSIGNED = "assigned"
    #: its process has started
    RUNNING = "running"
    #: its result is the job's result
    COMPLETED = "completed"
    #: its process ended without a result
    FAILED = "failed"
    #: its node went silent or came back without it
    LOST = "lost"
    #: its process was ended because the job was cancelled
    CANCELLED = "cancelled"
    #: it gave its place back: the node drained, or a more urgent job needed it
    PREEMPTED = "preempted"


class Cause(StrEnum):
    """Why an attempt ended without a result."""

    #: the job's own exception, or a non-zero exit
    ERROR = "error"
    #: memory of the host or of a GPU ran out
    OUT_OF_MEMORY = "out_of_memory"
    #: a signal that nobody here sent
    CRASHED = "crashed"
    #: no progress for much longer than its own pace
    HUNG = "hung"
    #: ran longer than its time limit
    TIME_LIMIT = "time_limit"
    #: the node stopped or went silent
    NODE_LOST = "node_lost"
    #: a connection that the job needs broke
    NETWORK = "network"
    #: the node's hardware reported a fault
    HARDWARE = "hardware"
    #: gave its place back
    PREEMPTED = "preempted"
    #: somebody cancelled the job
    CANCELLED = "cancelled"
    #: waited past its `expires` or `start_by`
    EXPIRED = "expired"
    #: did not end by its `deadline`
    DEADLINE = "deadline"
    #: a job that it was to run after ended in another way than it asked for
    DEPENDENCY = "dependency"


#: Which memory ran out, of an attempt that ended by OUT_OF_MEMORY: the field of Resources that asks for more of it.
Memory = Literal["ram", "gpu_memory"]


class Priority(StrEnum):
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for low to 3 for critical."""
        return list(Priority).index(self)


TERMINAL_JOB_STATES = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})
LIVE_ATTEMPT_STATES = frozenset({AttemptState.ASSIGNED, AttemptState.RUNNING})

#: Every legal move of a job. What is not here is refused by the queries in `db/`.
JOB_MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.PENDING: frozenset({JobState.ASSIGNED, JobState.CANCELLED, JobState.FAILED, JobState.HELD}),
    JobState.ASSIGNED: frozenset(
        {
            JobState.RUNNING,
            JobState.PENDING,
            JobState.COMPLETED,
            JobState.FAILED,
            JobState.CANCELLED,
            JobState.HELD,
        }
    ),
    JobState.RUNNING: frozenset(
        {JobState.PENDING, JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.HELD}
    ),
    JobState.HELD: frozenset({JobState.PENDING, JobState.CANCELLED, JobState.FAILED}),
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}

#: Celery's own states plus ours, as `AsyncResult.state` shows them.
ACCEPTED, ASSIGNED, STARTED, PROGRESS, RETRY = "ACCEPTED", "ASSIGNED", "STARTED", "PROGRESS", "RETRY"
CELERY_STATES: dict[JobState, str] = {
    JobState.PENDING: ACCEPTED,
    JobState.ASSIGNED: ASSIGNED,
    JobState.RUNNING: STARTED,
    JobState.COMPLETED: "SUCCESS",
    JobState.FAILED: "FAILURE",
    JobState.CANCELLED: "REVOKED",
    JobState.HELD: ACCEPTED,
}

#: Causes for which a job that waits again is shown as RETRY: it failed. What nodes did to it leaves it ACCEPTED.
RETRIED_CAUSES = frozenset({Cause.ERROR, Cause.OUT_OF_MEMORY, Cause.CRASHED, Cause.HUNG, Cause.NETWORK, Cause.HARDWARE})


def celery_state(state: JobState, cause: Cause | None = None) -> str:
    """Celery's name of a job's state; of one that waits, by the cause for which it does so again."""
    return RETRY if state == JobState.PENDING and cause in RETRIED_CAUSES else CELERY_STATES[state]
