"""The record's tables. The queries beside this file are SQL; these classes are what migrations are checked against.

States, causes and priorities are texts and small integers under CHECK constraints made from the enums in
`cyxwiz_tasks/states.py`: a new member is one migration that replaces a constraint, and psql shows words.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    REAL,
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Sequence,
    SmallInteger,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cyxwiz_tasks.states import AttemptState, Cause, JobState


class NodeState(StrEnum):
    #: beats, takes work
    UP = "up"
    #: late: keeps what it runs, gets nothing new
    SUSPECT = "suspect"
    #: its lease is over and its attempts were placed again
    LOST = "lost"
    #: stopped in order
    LEFT = "left"


class Cordon(StrEnum):
    #: a person asked for it
    DRAINING = "draining"
    #: it broke jobs
    QUARANTINED = "quarantined"


JOB_STATES = tuple(JobState)
ATTEMPT_STATES = tuple(AttemptState)
NODE_STATES = tuple(NodeState)
CAUSES = tuple(Cause)
CORDONS = tuple(Cordon)
DEPENDENCY_KINDS = ("ok", "any", "fail")

#: Rises for ever, over all jobs: of two attempts the later one has the higher token.
TOKENS = Sequence("attempt_token_seq")


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        }
    )
    type_annotation_map = {
        str: Text,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        bytes: LargeBinary,
    }


TOKENS.metadata = Base.metadata


def subject_state(column: str) -> str:
    """The SQL condition that an event's state is one of a node's, or of a job's if it tells of a job."""
    return f"CASE WHEN job_id IS NULL THEN {one_of(column, NODE_STATES)} ELSE {one_of(column, JOB_STATES)} END"


def one_of(column: str, values: tuple[str, ...]) -> str:
    """The SQL condition that a column holds one of these words."""
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


class Leadership(Base):
    """One row: who leads. Every write of a scheduler is made under this epoch."""

    __tablename__ = "leadership"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    epoch: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    holder: Mapped[str | None]
    since: Mapped[datetime | None]


class Node(Base):
    __tablename__ = "nodes"
    __table_args__ = (
        CheckConstraint(one_of("state", NODE_STATES), name="state"),
        CheckConstraint(one_of("cordon", CORDONS), name="cordon"),
        Index("ix_nodes_name", "name"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    hostname: Mapped[str]
    incarnation: Mapped[str]
    state: Mapped[str]
    capability: Mapped[dict[str, Any]]
    slots: Mapped[int]
    reputation: Mapped[float] = mapped_column(REAL, server_default=text("1"))
    region: Mapped[str | None]
    labels: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    first_seen_at: Mapped[datetime]
    registered_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    left_at: Mapped[datetime | None]
    up_seconds: Mapped[float] = mapped_column(Double, server_default=text("0"))
    telemetry: Mapped[dict[str, Any] | None]
    #: why it gets no new work, although it is up
    cordon: Mapped[str | None]
    #: quarantine: when it is over; drain: when what still runs is ended, if ever
    cordon_until: Mapped[datetime | None]
    cordon_reason: Mapped[str | None]
    #: faults since its last success, and quarantines since it was last trusted again
    faults: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    quarantines: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    #: whether a job has ever completed there
    tried: Mapped[bool] = mapped_column(server_default=text("false"))


class Device(Base):
    """One GPU of a node, as the node said when it registered last."""

    __tablename__ = "devices"

    node_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True)
    index: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    model: Mapped[str]
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    compute_capability: Mapped[str]
    driver: Mapped[str | None]
    cuda: Mapped[str | None]
    uuid: Mapped[str]
    fake: Mapped[bool] = mapped_column(server_default=text("false"))


class Job(Base):
    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(one_of("state", JOB_STATES), name="state"),
        CheckConstraint(one_of("cause", CAUSES), name="cause"),
        CheckConstraint("priority BETWEEN 0 AND 3", name="priority"),
        Index("uq_jobs_seq", "seq", unique=True),
        Index(
            "uq_jobs_owner_idempotency_key",
            "owner",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
        Index("ix_jobs_waiting", text("priority DESC"), "seq", postgresql_where=text("state = 'pending'")),
        Index("ix_jobs_held", "seq", postgresql_where=text("state = 'held'")),
        Index(
            "ix_jobs_expires_at",
            "expires_at",
            postgresql_where=text("state = 'pending' AND expires_at IS NOT NULL"),
        ),
        Index(
            "ix_jobs_deadline_at", "deadline_at", postgresql_where=text("ended_at IS NULL AND deadline_at IS NOT NULL")
        ),
        Index("ix_jobs_array_id", "array_id", "array_index", postgresql_where=text("array_id IS NOT NULL")),
        Index("ix_jobs_open_array_id", "array_id", postgresql_where=text("array_id IS NOT NULL AND ended_at IS NULL")),
        Index("ix_jobs_ended_at", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    #: order of acceptance
    seq: Mapped[int] = mapped_column(BigInteger, Identity())
    task: Mapped[str]
    entry: Mapped[str | None]
    name: Mapped[str | None]
    owner: Mapped[str]
    project: Mapped[str]
    idempotency_key: Mapped[str | None]
    priority: Mapped[int] = mapped_column(SmallInteger)
    resources: Mapped[dict[str, Any]]
    shape: Mapped[str]
    #: SHA-256 of task, arguments and resources: two messages with one id and one digest are one job
    digest: Mapped[bytes]
    state: Mapped[str]
    cause: Mapped[str | None]
    message: Mapped[str | None]
    exception: Mapped[str | None]
    traceback: Mapped[str | None]
    result: Mapped[Any | None] = mapped_column(JSONB)
    #: where its newest attempt runs or ended; none while it waits
    node_id: Mapped[uuid.UUID | None]
    #: of its newest attempt
    current_token: Mapped[int | None] = mapped_column(BigInteger)
    #: how many attempts there were
    attempts: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    submitted_at: Mapped[datetime | None]
    accepted_at: Mapped[datetime]
    assigned_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    deadline_at: Mapped[datetime | None]
    time_limit_seconds: Mapped[float | None] = mapped_column(Double)
    #: of its first attempt: from then on it has kept its `start_by`
    first_started_at: Mapped[datetime | None]
    #: what its attempts taught: fields that tighten its resources, such as a bigger GPU after it ran out of memory
    learned: Mapped[dict[str, Any] | None]
    cancel_requested_at: Mapped[datetime | None]
    cancel_reason: Mapped[str | None]
    #: the Celery message as it came, a JSON text, to publish it again
    envelope: Mapped[str]
    #: the array that it belongs to, and its number there, from 0 on
    array_id: Mapped[uuid.UUID | None]
    array_index: Mapped[int | None]


class Array(Base):
    """Jobs that were sent as one, by their common id."""

    __tablename__ = "arrays"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    owner: Mapped[str]
    size: Mapped[int]
    #: so many of its jobs are placed at once; none: as many as fit
    at_most: Mapped[int | None]
    #: the fields of a SuccessiveHalving
    early_stopping: Mapped[dict[str, Any] | None]
    accepted_at: Mapped[datetime] = mapped_column(server_default=text("statement_timestamp()"))


class Schedule(Base):
    """A job that is sent again and again. Each firing moves `next_at` in the transaction that records its job."""

    __tablename__ = "schedules"

    name: Mapped[str] = mapped_column(primary_key=True)
    #: also the id in its message
    id: Mapped[uuid.UUID]
    owner: Mapped[str]
    cron: Mapped[str]
    timezone: Mapped[str]
    catch_up: Mapped[bool]
    envelope: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=text("statement_timestamp()"))
    next_at: Mapped[datetime]
    last_at: Mapped[datetime | None]
    last_job_id: Mapped[uuid.UUID | None]


class Attempt(Base):
    __tablename__ = "attempts"
    __table_args__ = (
        CheckConstraint(one_of("state", ATTEMPT_STATES), name="state"),
        CheckConstraint(one_of("cause", CAUSES), name="cause"),
        Index("uq_attempts_job_id_number", "job_id", "number", unique=True),
        # At most one live attempt per job, whatever the queries do.
        Index(
            "uq_attempts_live_job",
            "job_id",
            unique=True,
            postgresql_where=text("state IN ('assigned', 'running')"),
        ),
        Index("ix_attempts_live_node", "node_id", postgresql_where=text("state IN ('assigned', 'running')")),
        # Attempts end more or less in the order in which they stand in the table: this index costs next to nothing.
        Index("ix_attempts_ended_at", "ended_at", postgresql_using="brin"),
        # Renewed leases are updates in place: room on the page keeps them off the indexes.
        {"postgresql_with": {"fillfactor": 80}},
    )

    token: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    #: 1 for the job's first attempt
    number: Mapped[int]
    node_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("nodes.id"))
    incarnation: Mapped[str]
    gpus: Mapped[list[int]] = mapped_column(ARRAY(Integer))
    gpu_memory_bytes: Mapped[int] = mapped_column(BigInteger)
    cpus: Mapped[int]
    ram_bytes: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str]
    cause: Mapped[str | None]
    message: Mapped[str | None]
    exit_code: Mapped[int | None]
    pid: Mapped[int | None]
    device: Mapped[str | None]
    epoch: Mapped[int] = mapped_column(BigInteger)
    assigned_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    lease_until: Mapped[datetime]
    scores: Mapped[dict[str, Any] | None]


class GangMember(Base):
    """One member of an attempt on several nodes; its rank 0 has the attempt's own token."""

    __tablename__ = "gang_members"
    __table_args__ = (Index("uq_gang_members_lead_rank", "lead", "rank", unique=True),)

    token: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    #: the token of the gang's attempt
    lead: Mapped[int] = mapped_column(ForeignKey("attempts.token", ondelete="CASCADE"))
    rank: Mapped[int] = mapped_column(SmallInteger)
    #: no foreign key: its node may leave the record before it
    node_id: Mapped[uuid.UUID]
    incarnation: Mapped[str]
    gpus: Mapped[list[int]] = mapped_column(ARRAY(Integer))
    gpu_memory_bytes: Mapped[int] = mapped_column(BigInteger)
    cpus: Mapped[int]
    ram_bytes: Mapped[int] = mapped_column(BigInteger)
    pid: Mapped[int | None]
    device: Mapped[str | None]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    #: its last word
    report: Mapped[dict[str, Any] | None]


class OwnerLimit(Base):
    """What one owner may have, where that differs from what the settings say of all."""

    __tablename__ = "owner_limits"
    __table_args__ = (
        CheckConstraint("weight > 0", name="weight"),
        CheckConstraint("running >= 0 AND waiting >= 0 AND per_minute > 0", name="limits"),
    )

    owner: Mapped[str] = mapped_column(primary_key=True)
    #: his part of what owners share, in proportion
    weight: Mapped[float] = mapped_column(Double)
    #: jobs that run, jobs that wait, submissions a minute; none: as many as he likes
    running: Mapped[int | None] = mapped_column(Integer)
    waiting: Mapped[int | None] = mapped_column(Integer)
    per_minute: Mapped[float | None] = mapped_column(Double)


class Quota(Base):
    """What a project owns of the cluster, lends and borrows; a limit that is none is without one."""

    __tablename__ = "quotas"
    __table_args__ = (
        CheckConstraint("weight > 0", name="weight"),
        CheckConstraint(
            "gpus >= 0 AND cpus >= 0 AND lend_gpus >= 0 AND lend_cpus >= 0 AND borrow_gpus >= 0 AND borrow_cpus >= 0",
            name="amounts",
        ),
    )

    project: Mapped[str] = mapped_column(primary_key=True)
    #: its part of what projects share, in proportion
    weight: Mapped[float] = mapped_column(Double)
    gpus: Mapped[int]
    cpus: Mapped[int]
    #: of its own, others may use so much while it is idle
    lend_gpus: Mapped[int | None]
    lend_cpus: Mapped[int | None]
    #: it may use so much beyond its own
    borrow_gpus: Mapped[int | None]
    borrow_cpus: Mapped[int | None]


class Event(Base):
    """What happened, in order; rows are only added. A row with a `to_state` is a move, one without is a note.

    With a `job_id` it tells of a job, without one of a node.
    """

    __tablename__ = "events"
    __table_args__ = (
        CheckConstraint(subject_state("from_state"), name="from_state"),
        CheckConstraint(subject_state("to_state"), name="to_state"),
        CheckConstraint(one_of("cause", CAUSES), name="cause"),
        CheckConstraint("job_id IS NOT NULL OR node_id IS NOT NULL", name="subject"),
        Index("ix_events_job_id_seq", "job_id", "seq", postgresql_where=text("job_id IS NOT NULL")),
        Index("ix_events_node_id_seq", "node_id", "seq", postgresql_where=text("job_id IS NULL")),
    )

    seq: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    job_id: Mapped[uuid.UUID | None]
    node_id: Mapped[uuid.UUID | None]
    attempt: Mapped[int | None]
    token: Mapped[int | None] = mapped_column(BigInteger)
    epoch: Mapped[int] = mapped_column(BigInteger)
    from_state: Mapped[str | None]
    to_state: Mapped[str | None]
    cause: Mapped[str | None]
    at: Mapped[datetime] = mapped_column(server_default=text("statement_timestamp()"))
    #: who made it happen: client, scheduler, node
    actor: Mapped[str]
    detail: Mapped[dict[str, Any] | None]


class Dependency(Base):
    """A job that is placed only once another has ended; `met_at` says when it had, as it was asked for."""

    __tablename__ = "dependencies"
    __table_args__ = (
        CheckConstraint(one_of("kind", DEPENDENCY_KINDS), name="kind"),
        Index("ix_dependencies_on_id", "on_id", postgresql_where=text("met_at IS NULL")),
    )

    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    #: no foreign key: what ended long ago leaves the record
    on_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    met_at: Mapped[datetime | None]


class Metric(Base):
    """One `ctx.report()` of a job; `at` is by the node's clock, for display."""

    __tablename__ = "metrics"
    __table_args__ = (Index("ix_metrics_job_id_attempt_at", "job_id", "attempt", "at"),)

    seq: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int]
    at: Mapped[datetime]
    values: Mapped[dict[str, Any]]
