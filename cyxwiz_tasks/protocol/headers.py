"""What travels with the Celery message of a job: what it needs, and, once it is placed, where it runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from cyxwiz_tasks.early_stopping import SuccessiveHalving
from cyxwiz_tasks.protocol.message import Message, Uuid
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority

VERSION = 1

#: three hundred years: beyond, a database's moments end
LONGEST_SECONDS = 1e10
Seconds = Annotated[float, Field(ge=-LONGEST_SECONDS, le=LONGEST_SECONDS, allow_inf_nan=False)]

#: jobs of one array
ARRAY_LIMIT = 100_000


class After(Message):
    """A job, or an array of jobs, that must have ended before another one may be placed."""

    id: Uuid
    #: "ok": with a result; "fail": without one, failed or cancelled; "any": in whatever way; "match": between two
    #: arrays, each job after the one with its own index there, with a result
    kind: Literal["ok", "any", "fail", "match"] = "ok"


class Array(Message):
    """What the jobs of one array have in common."""

    id: Uuid
    name: str | None = None
    size: Annotated[int, Field(ge=1, le=ARRAY_LIMIT)]
    #: so many of them are placed at once; None: as many as fit
    at_most: Annotated[int, Field(ge=1)] | None = None
    early_stopping: SuccessiveHalving | None = None


class JobHeader(Message):
    """The header `cyxwiz` of a job's Celery message: what the scheduler and the node must know of it."""

    version: int = VERSION
    #: `module:function` that the job's process imports; None for the tasks that come with this project
    entry: str | None = None
    #: folder on the submitter's machine that holds the module; a node uses it only where it trusts its submitters
    path: str | None = None
    #: what people see in lists
    name: str | None = None
    resources: Resources = Field(default_factory=Resources)
    priority: Priority = Priority.NORMAL
    #: two submissions of one owner with the same key are one job
    idempotency_key: str | None = None
    owner: str = ""
    project: str = ""
    time_limit_seconds: Seconds | None = None
    #: from its acceptance on: cancelled if it has not started by then
    start_by_seconds: Seconds | None = None
    #: from its acceptance on: ended wherever it is if it has not ended by then
    deadline_seconds: Seconds | None = None
    #: further tries after an end that is the job's own fault; what nodes do to it never counts
    max_retries: int = 0
    #: names of exceptions, with or without their module: only these are tried again (empty: every one)
    retry_on: tuple[str, ...] = ()
    #: names of exceptions that are never tried again
    no_retry_on: tuple[str, ...] = ()
    #: it writes to the outside world: its node ends it before its lease could end
    exclusive: bool = False
    #: what it waits for before it may be placed
    after: tuple[After, ...] = ()
    #: the array that it belongs to, and its number there, from 0 on
    array: Array | None = None
    array_index: Annotated[int, Field(ge=0, lt=ARRAY_LIMIT)] | None = None
    #: where the submitter waits for the scheduler's word, if it does
    reply_to: str | None = None


class Membership(Message):
    """Of a job on several nodes: which member of the gang an assignment is for, and who the others are."""

    rank: int
    #: the token of rank 0, which is the whole gang's
    token: int
    #: names of all members' nodes, by rank
    nodes: tuple[str, ...]
    #: where the others reach the node of rank 0; None: it has just gone
    address: str | None = None


class Assignment(Message):
    """The header `cyxwiz_assignment`: one placement of a job on one node.

    A report counts only while `token` is the job's current one.
    """

    job: str
    #: 1 for the job's first attempt
    attempt: int
    token: int
    node: str
    incarnation: str
    #: indexes of the node's GPUs that the job may use
    gpus: tuple[int, ...] = ()
    #: what it may take of each of them, where it shares them; None: as much as there is
    gpu_share_bytes: int | None = None
    epoch: int
    #: what was left until the job's deadline when the message was made
    deadline_seconds: float | None = None
    gang: Membership | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """The fields with which every report of this attempt begins."""
        return {
            "node": self.node,
            "incarnation": self.incarnation,
            "job": self.job,
            "attempt": self.attempt,
            "token": self.token,
        }
