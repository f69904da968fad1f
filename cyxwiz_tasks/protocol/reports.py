"""Node -> scheduler: who it is, what it runs, and how attempts start and end there."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, TypeAdapter

from cyxwiz_tasks.capability import Capability
from cyxwiz_tasks.protocol.message import Message
from cyxwiz_tasks.states import Cause, Memory


class Register(Message):
    kind: Literal["register"] = "register"
    node: str
    incarnation: str
    name: str
    #: Celery's name of the worker, as Flower shows it
    hostname: str
    capability: Capability
    #: tokens of the attempts that run there
    running: tuple[int, ...] = ()
    reply_to: str | None = None


class Stopping(Message):
    """The node is about to stop: what runs there gives its place back, and nothing new should come."""

    kind: Literal["stopping"] = "stopping"
    node: str
    incarnation: str


class Left(Message):
    """The node stops in order: its attempts have ended or go back to the queue."""

    kind: Literal["left"] = "left"
    node: str
    incarnation: str
    reply_to: str | None = None


class AttemptReport(Message):
    """What the reports of an attempt share: with `token` the scheduler fences, `node` says who speaks."""

    node: str
    incarnation: str
    job: str
    attempt: int
    token: int


class Process(Message):
    """What runs an attempt."""

    pid: int
    #: "cuda:0", or "cpu"
    device: str


class Started(AttemptReport, Process):
    kind: Literal["started"] = "started"


class Ended(AttemptReport):
    """The attempt is over and its processes are gone."""

    kind: Literal["ended"] = "ended"
    #: "retry": the task retries itself, `retry` is the next message of the same job
    outcome: Literal["completed", "failed", "cancelled", "preempted", "retry"]
    cause: Cause | None = None
    #: one or two sentences that a user can act on
    message: str | None = None
    exception: str | None = None
    #: the classes that the exception is an instance of, itself first, each as "module.Class"
    exception_bases: tuple[str, ...] = ()
    traceback: str | None = None
    exit_code: int | None = None
    #: what ran it, if its start was told; that word may be lost
    process: Process | None = None
    #: what the function returned; None too where it is larger than `result_limit_bytes`
    result: JsonValue = None
    seconds: float = 0.0
    #: the Celery message of the job's next try, as it would lie in the inbox
    retry: str | None = None
    #: how long after this end it is due: no clock is compared with another for that; None: its `eta` counts
    retry_in_seconds: float | None = None
    #: out of memory: which one
    memory: Memory | None = None
    #: and how much of it the attempt had: the host's, or that of its smallest GPU
    had_memory_bytes: int | None = None
    #: preempted: nobody had told the node to end it, which stops, or was cut off
    by_node: bool = False
    #: nobody on the node will tell Celery of this end, its agent was started anew meanwhile: the scheduler does
    untold: bool = False
    reply_to: str | None = None


class Metrics(AttemptReport):
    """Rows for the job's history, each what one `ctx.report()` said and when, in Unix seconds."""

    kind: Literal["metrics"] = "metrics"
    rows: tuple[dict[str, JsonValue], ...]


Report = Annotated[Register | Stopping | Left | Started | Ended | Metrics, Field(discriminator="kind")]
REPORT: TypeAdapter[Report] = TypeAdapter(Report)


class ReportReply(Message):
    """`committed` False: the report came from an attempt that is no longer the job's current one."""

    committed: bool
    #: False: the job goes on, waits to be tried again or is held; the node tells Celery nothing of this end
    final: bool = True
    message: str | None = None


class Running(Message):
    """What a node runs, told with its beats: the scheduler compares it with the record."""

    incarnation: str
    #: rises with every telling of one incarnation
    number: int
    #: tokens of attempts that run, or whose end is not confirmed yet
    tokens: tuple[int, ...] = ()
    #: by token, of those whose start was told: who runs them; a message that waits for its process is not among them
    begun: dict[int, Process] = Field(default_factory=dict)
    #: by token, of those that have written a whole checkpoint: how old the newest one is, by the node's monotonic clock
    checkpoint_age_seconds: dict[int, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
