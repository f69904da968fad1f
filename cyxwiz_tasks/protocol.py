"""The contract on the wire: names of queues and keys in Redis, and the form of every message on them.

A job travels as an ordinary Celery message (protocol 2) with one more header, `cyxwiz` (`JobHeader`). The scheduler
publishes the same headers and body on one node's queue and adds the header `cyxwiz_assignment` (`Assignment`).
Everything else is a JSON object in a Redis list with a `kind`: reports go from nodes to the scheduler, controls from
the scheduler to one node, commands and queries from clients to the scheduler. A sender that waits names a reply key.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from cyxwiz_tasks.capability import Capability
from cyxwiz_tasks.early_stopping import SuccessiveHalving
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Cause, Priority

VERSION = 1

#: jobs of one array
ARRAY_LIMIT = 100_000

INBOX = "cyxwiz.inbox"
REPORTS = "cyxwiz.reports"
COMMANDS = "cyxwiz.commands"
QUERIES = "cyxwiz.queries"
#: messages that nobody here could read, newest first, capped
REJECTED = "cyxwiz.rejected"
#: sorted set: node id -> time of its last beat by Redis' own clock, seconds
BEATS = "cyxwiz.beats"

HEADER = "cyxwiz"
ASSIGNMENT_HEADER = "cyxwiz_assignment"

#: The task that trains a `TrainingJob`.
TRAIN_TASK = "cyxwiz.train"
#: Celery's event type with which a running job shows its progress in Flower.
PROGRESS_EVENT = "task-progress"


def node_queue(node_id: str) -> str:
    """The Celery queue that one node consumes."""
    return f"node.{node_id}"


def control_key(node_id: str) -> str:
    """The list in which one node finds what it is told to do."""
    return f"cyxwiz.control.{node_id}"


def reply_key(request_id: str) -> str:
    """The list on which whoever made a request waits for its answer."""
    return f"cyxwiz.reply.{request_id}"


def telemetry_key(node_id: str) -> str:
    """The text with a node's newest telemetry, as JSON."""
    return f"cyxwiz.telemetry.{node_id}"


def running_key(node_id: str) -> str:
    """The text with what a node runs, as JSON (`Running`); it expires with the node's beats."""
    return f"cyxwiz.running.{node_id}"


def progress_key(job_id: str) -> str:
    """The stream of a job's updates: entries with one field `update`, a JSON object (`Update`)."""
    return f"cyxwiz.progress.{job_id}"


def log_key(job_id: str, rank: int = 0) -> str:
    """The stream with a job's output; of a gang each rank has its own."""
    return f"cyxwiz.log.{job_id}" + (f".{rank}" if rank else "")


def meeting_key(gang_token: int) -> str:
    """The port at which the members of a gang meet, on the node of rank 0."""
    return f"cyxwiz.meeting.{gang_token}"


class Message(BaseModel):
    """A message of ours. Unknown fields are ignored, so that a newer sender is understood."""

    model_config = ConfigDict(extra="ignore", frozen=True)


#: an id in its usual form
Uuid = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]


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
    time_limit_seconds: float | None = None
    #: from its acceptance on: cancelled if it has not started by then
    start_by_seconds: float | None = None
    #: from its acceptance on: ended wherever it is if it has not ended by then
    deadline_seconds: float | None = None
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
    epoch: int
    #: what was left until the job's deadline when the message was made
    deadline_seconds: float | None = None
    gang: Membership | None = None


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


# Reports: node -> scheduler ---------------------------------------------------------------------------------------


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


class Started(AttemptReport):
    kind: Literal["started"] = "started"
    pid: int
    #: "cuda:0", or "cpu"
    device: str


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
    #: what the function returned; None too where it is larger than `result_limit_bytes`
    result: JsonValue = None
    seconds: float = 0.0
    #: the Celery message of the job's next try, as it would lie in the inbox
    retry: str | None = None
    #: how long after this end it is due: no clock is compared with another for that; None: its `eta` counts
    retry_in_seconds: float | None = None
    #: out of memory: how much the attempt had, of its smallest GPU, or of the host where it had none
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


Report = Annotated[Register | Left | Started | Ended | Metrics, Field(discriminator="kind")]
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
    #: by token, of those that have written a whole checkpoint: how old the newest one is, by the node's monotonic clock
    checkpoint_age_seconds: dict[int, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)


# Controls: scheduler -> one node ----------------------------------------------------------------------------------


class Stop(Message):
    """End an attempt: ask its process, wait `grace_seconds`, end its whole process tree, report `outcome`."""

    kind: Literal["stop"] = "stop"
    job: str
    token: int
    outcome: Literal["cancelled", "preempted"] = "cancelled"
    grace_seconds: float = 2.0
    #: for the job's log and its record: what its place is needed for
    reason: str = ""
    #: nobody told the node, which stops itself
    by_node: bool = False


class RegisterAgain(Message):
    """The scheduler does not know this incarnation of the node (any more)."""

    kind: Literal["register_again"] = "register_again"


Control = Annotated[Stop | RegisterAgain, Field(discriminator="kind")]
CONTROL: TypeAdapter[Control] = TypeAdapter(Control)


# Commands and queries: client -> scheduler ------------------------------------------------------------------------


class Cancel(Message):
    kind: Literal["cancel"] = "cancel"
    job: str
    reason: str = ""
    reply_to: str | None = None


class CancelArray(Message):
    """End what has not ended of an array."""

    kind: Literal["cancel_array"] = "cancel_array"
    array: Uuid
    reason: str = ""
    reply_to: str | None = None


class AddSchedule(Message):
    """Send a job again and again: at each moment that `cron` names in a timezone."""

    kind: Literal["add_schedule"] = "add_schedule"
    #: also the id in `message`, in whose place each job gets its own
    id: Uuid
    name: str
    cron: str
    timezone: str = "UTC"
    #: whether moments that passed while no scheduler ran are made up for, by one job
    catch_up: bool = True
    #: the Celery message of the jobs, as it would lie in the inbox
    message: str
    reply_to: str | None = None


class RemoveSchedule(Message):
    kind: Literal["remove_schedule"] = "remove_schedule"
    name: str
    reply_to: str | None = None


class Why(Message):
    """Explain where a job stands; with `resources` and no job, a dry run for a job of this owner."""

    kind: Literal["why"] = "why"
    job: str | None = None
    resources: Resources | None = None
    owner: str = ""
    project: str = ""
    priority: Priority = Priority.NORMAL
    reply_to: str | None = None


class Release(Message):
    """Put a held job back into the queue."""

    kind: Literal["release"] = "release"
    job: str
    reply_to: str | None = None


class Drain(Message):
    """Give a node, by name or id, no new work, and end what it runs in `deadline_seconds`: 0 at once, None never."""

    kind: Literal["drain"] = "drain"
    node: str
    deadline_seconds: float | None = 0.0
    reason: str = ""
    reply_to: str | None = None


class Undrain(Message):
    """Let a node that drains, or that is in quarantine, take work again."""

    kind: Literal["undrain"] = "undrain"
    node: str
    reply_to: str | None = None


class SetLimits(Message):
    """What an owner may have from now on: weight, running, waiting, per_minute; None: without a limit."""

    kind: Literal["set_limits"] = "set_limits"
    owner: str
    changes: dict[str, float | None]
    reply_to: str | None = None


class SetQuota(Message):
    """What a project owns, lends and borrows from now on, as `broker.scheduler.quotas.Quota`; None: nothing at all."""

    kind: Literal["set_quota"] = "set_quota"
    project: str
    changes: dict[str, float | None] | None
    reply_to: str | None = None


class Quotas(Message):
    """What do projects own, and what do they hold?"""

    kind: Literal["quotas"] = "quotas"
    reply_to: str | None = None


class Usage(Message):
    """Who has how much of the cluster?"""

    kind: Literal["usage"] = "usage"
    reply_to: str | None = None


Command = Annotated[
    Cancel
    | CancelArray
    | AddSchedule
    | RemoveSchedule
    | Why
    | Release
    | Drain
    | Undrain
    | SetLimits
    | Usage
    | SetQuota
    | Quotas,
    Field(discriminator="kind"),
]
COMMAND: TypeAdapter[Command] = TypeAdapter(Command)


class Query(Message):
    """A question to the record: `name` is one of broker/scheduler/queries.py, `arguments` its keywords."""

    name: Literal["jobs", "job", "array", "schedules", "nodes", "events", "metrics", "status"]
    arguments: dict[str, Any] = Field(default_factory=dict)
    reply_to: str


class Reply(Message):
    """An answer: `value`, or the class name in `cyxwiz_tasks.errors` and the message of what went wrong."""

    value: JsonValue = None
    error_type: str | None = None
    error: str | None = None
