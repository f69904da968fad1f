"""Scheduler and nodes -> submitter: what became of a submission, and how its job goes on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from cyxwiz_tasks.protocol.message import Message


class Ack(Message):
    """The scheduler's word on one submission: `job` is the id it is recorded under, or `error` says why not."""

    id: str
    job: str | None = None
    #: Celery's name of the job's state
    state: str | None = None
    #: class name in `cyxwiz_tasks.errors` and its message
    error_type: str | None = None
    error: str | None = None


class Acks(Message):
    """The scheduler's word on many submissions, of which most need few words."""

    #: ids of jobs that are recorded under their own id
    recorded: tuple[str, ...] = ()
    acks: tuple[Ack, ...] = ()


class Update(Message):
    """One entry of a job's progress stream."""

    #: "state": the job moved; "progress": what it reported; "end": the job has ended, nothing follows
    kind: Literal["state", "progress", "end"]
    #: Celery's name of the state
    state: str | None = None
    #: the node, by name, where one is known
    node: str | None = None
    attempt: int | None = None
    #: why this node was chosen, or why the job ended as it did
    message: str | None = None
    #: a Unix time by the sender's clock, for display alone
    at: float = 0.0
    values: dict[str, JsonValue] = Field(default_factory=dict)
