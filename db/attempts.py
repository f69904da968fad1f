"""Attempts: place, start, end, and take back. The fence of the whole system is here.

A statement that moves an attempt first locks the row of its job, under the condition that the job is live and that the
token is its current one; what does not pass changes nothing. The lock puts any two such statements in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from cyxwiz_tasks.states import TERMINAL_JOB_STATES, AttemptState, Cause, JobState
from db.moves import LIVE, sources
from db.reports import check_ids, check_number
from db.rows import batch, storable


@dataclass
class Place:
    """Where something was placed, and what it takes out of the node's while it runs."""

    node_id: str
    incarnation: str
    #: NVML's indexes
    gpus: Sequence[int]
    gpu_memory_bytes: int
    cpus: int
    ram_bytes: int


@dataclass(kw_only=True)
class NewAttempt(Place):
    """A place that was chosen for a pending job."""

    job_id: str
    #: why this node: what `why` shows
    scores: dict[str, Any] | None = None


@dataclass(frozen=True)
class Assigned:
    job_id: str
    token: int
    #: 1 for the job's first attempt
    number: int
    node_id: str


_ASSIGN = text(
    """
    WITH moved AS (
        UPDATE jobs SET state = 'assigned', node_id = given.node_id, current_token = nextval('attempt_token_seq'),
            attempts = attempts + 1, assigned_at = statement_timestamp(), cause = NULL, message = NULL,
            not_before = NULL
        FROM json_to_recordset(CAST(:rows AS json)) AS given (
            job_id uuid, node_id uuid, incarnation text, gpus int[], gpu_memory_bytes bigint, cpus int,
            ram_bytes bigint, scores jsonb
        )
        WHERE jobs.id = given.job_id AND jobs.state = ANY(:sources)
        RETURNING given.*, current_token AS token, attempts AS number
    ), placed AS (
        INSERT INTO attempts (token, job_id, number, node_id, incarnation, gpus, gpu_memory_bytes, cpus, ram_bytes,
            state, epoch, assigned_at, lease_until, scores)
        SELECT token, job_id, number, node_id, incarnation, gpus, gpu_memory_bytes, cpus, ram_bytes, 'assigned', :epoch,
            statement_timestamp(), statement_timestamp() + make_interval(secs => :lease_seconds), scores
        FROM moved
    ), logged AS (
        INSERT INTO events (job_id, node_id, attempt, token, epoch, from_state, to_state, actor)
        SELECT job_id, node_id, number, token, :epoch, 'pending', 'assigned', 'scheduler' FROM moved
    )
    SELECT job_id::text, token, number, node_id::text FROM moved"""
)


def assign(tx: Connection, epoch: int, attempts: Sequence[NewAttempt], lease_seconds: float) -> dict[str, Assigned]:
    """Place jobs that are still pending; by job id those that were. A job without an entry had moved on meanwhile."""
    if not attempts:
        return {}
    values = {
        "rows": batch(attempts),
        "sources": sources(JobState.ASSIGNED),
        "epoch": epoch,
        "lease_seconds": lease_seconds,
    }
    return {row[0]: Assigned(*row) for row in tx.execute(_ASSIGN, values)}


@dataclass
class Start:
    """A node's word that an attempt's process runs. Raises ProtocolError for what a table cannot hold."""

    job_id: str
    token: int
    node_id: str
    pid: int
    device: str

    def __post_init__(self) -> None:
        check_ids(self.job_id, self.node_id)
        check_number("token", self.token, 64)
        check_number("pid", self.pid, 32)


_START = text(
    """
    WITH moved AS (
        UPDATE jobs SET state = 'running', started_at = statement_timestamp(),
            first_started_at = coalesce(first_started_at, statement_timestamp())
        FROM json_to_recordset(CAST(:rows AS json)) AS given (
            job_id uuid, token bigint, node_id uuid, pid int, device text
        )
        WHERE jobs.id = given.job_id AND jobs.current_token = given.token AND jobs.node_id = given.node_id
            AND jobs.state = ANY(:sources)
        RETURNING given.*, attempts AS number
    ), started AS (
        UPDATE attempts SET state = 'running', started_at = statement_timestamp(), pid = moved.pid,
            device = moved.device
        FROM moved WHERE attempts.token = moved.token
    ), logged AS (
        INSERT INTO events (job_id, node_id, attempt, token, epoch, from_state, to_state, actor, detail)
        SELECT job_id, node_id, number, token, :epoch, 'assigned', 'running', 'node',
            jsonb_build_object('pid', pid, 'device', device)
        FROM moved
    )
    SELECT token FROM moved"""
)


def start(tx: Connection, epoch: int, reports: Sequence[Start]) -> set[int]:
    """Move attempts to running; the tokens of those that moved. The rest had started before, or are fenced."""
    if not reports:
        return set()
    values = {"rows": batch(reports), "sources": sources(JobState.RUNNING), "epoch": epoch}
    return {row[0] for row in tx.execute(_START, values)}


@dataclass
class Ending:
    """How an attempt ended (`state`) and what that makes of its job (`job_state`): ended, back in the queue, or held.

    Raises ProtocolError for what a table cannot hold.
    """

    job_id: str
    token: int
    node_id: str
    state: AttemptState
    job_state: JobState
    cause: Cause | None = None
    message: str | None = None
    exception: str | None = None
    traceback: str | None = None
    exit_code: int | None = None
    result: Any = None
    #: for a job that goes back to the queue: not to be placed sooner, and what replaces fields of its resources
    retry_after_seconds: float | None = None
    learned: dict[str, Any] | None = None
    #: what the job's page says; without it, `message`
    job_message: str | None = None

    def __post_init__(self) -> None:
        check_ids(self.job_id, self.node_id)
        check_number("token", self.token, 64)
        check_number("exit_code", self.exit_code, 32)
        if self.state in LIVE or self.job_state in LIVE:
            raise ValueError(f"{self.state} and {self.job_state} are no ends of an attempt")
        if (self.state == AttemptState.COMPLETED) != (self.job_state == JobState.COMPLETED):
            raise ValueError("an attempt is completed if and only if its job is")


@dataclass(frozen=True)
class Settled:
    """The record's word on one ending.

    `committed`: the record holds this ending of this attempt. `repeated`: it did so before, so it changed nothing now.
    Neither: the attempt was not the job's current one any more, its report is fenced.
    """

    job_id: str
    token: int
    committed: bool
    repeated: bool = False
    #: what the job is by now; cancelled instead of pending if its cancellation was asked for meanwhile
    job_state: JobState | None = None
    #: whether the attempt is the job's newest one
    newest: bool = True


# Both rows are locked before anything is decided, so the state that is left and a wish to cancel are the newest ones.
# An ending of the scheduler's own (`unplace`) names no job and no node: the token says it all.
_SETTLE = text(
    """
    WITH given AS MATERIALIZED (
        SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS given (
            job_id uuid, token bigint, node_id uuid, state text, job_state text, cause text, message text,
            exception text, traceback text, exit_code int, result jsonb, retry_after_seconds double precision,
            learned jsonb, job_message text
        )
    ), locked AS (
        SELECT given.*, jobs.id, attempts.node_id AS place, attempts.number, jobs.state AS from_state,
            CASE WHEN job_state IN ('pending', 'held') AND cancel_requested_at IS NOT NULL
                THEN 'cancelled' ELSE job_state END AS goal
        FROM given
        JOIN attempts ON attempts.token = given.token AND attempts.state = ANY(:live)
        JOIN jobs ON jobs.id = attempts.job_id AND jobs.current_token = attempts.token AND jobs.state = ANY(:live)
        WHERE attempts.job_id = coalesce(given.job_id, attempts.job_id)
            AND attempts.node_id = coalesce(given.node_id, attempts.node_id)
        FOR UPDATE OF jobs, attempts
    ), moved AS (
        UPDATE jobs SET state = goal, exception = locked.exception, traceback = locked.traceback,
            cause = CASE WHEN goal = locked.job_state THEN locked.cause ELSE 'cancelled' END,
            message = CASE WHEN goal = locked.job_state THEN coalesce(locked.job_message, locked.message)
                ELSE nullif(cancel_reason, '') END,
            learned = coalesce(jobs.learned || locked.learned, locked.learned, jobs.learned),
            result = CASE WHEN goal = 'completed' THEN locked.result END,
            ended_at = CASE WHEN goal = ANY(:ended) THEN statement_timestamp() END,
            node_id = CASE WHEN goal = ANY(:ended) THEN jobs.node_id END,
            assigned_at = CASE WHEN goal = ANY(:ended) THEN assigned_at END,
            started_at = CASE WHEN goal = ANY(:ended) THEN started_at END,
            not_before = CASE WHEN goal = 'pending' THEN greatest(
                not_before, statement_timestamp() + make_interval(secs => locked.retry_after_seconds)) END
        FROM locked WHERE jobs.id = locked.id
        RETURNING locked.*
    ), closed AS (
        UPDATE attempts SET state = moved.state, cause = moved.cause, message = moved.message,
            exit_code = moved.exit_code, ended_at = statement_timestamp()
        FROM moved WHERE attempts.token = moved.token
    ), logged AS (
        INSERT INTO events (job_id, node_id, attempt, token, epoch, from_state, to_state, cause, actor, detail)
        SELECT id, place, number, token, :epoch, from_state, goal, cause, :actor,
            jsonb_strip_nulls(jsonb_build_object('attempt_state', state, 'message', coalesce(job_message, message),
                'exit_code', exit_code, 'retry_after_seconds', retry_after_seconds, 'learned', learned))
        FROM moved
    )
    SELECT given.token, coalesce(moved.id, attempts.job_id)::text AS job_id, moved.id IS NOT NULL AS moved,
        coalesce(moved.goal, jobs.state) AS job_state,
        coalesce(attempts.job_id = given.job_id AND attempts.node_id = given.node_id
            AND attempts.state = given.state, false) AS known,
        coalesce(jobs.current_token = given.token, false) AS newest
    FROM given
    LEFT JOIN moved ON moved.token = given.token
    LEFT JOIN attempts ON attempts.token = given.token
    LEFT JOIN jobs ON jobs.id = attempts.job_id"""
)


def end(tx: Connection, epoch: int, endings: Sequence[Ending]) -> list[Settled]:
    """End attempts as their nodes report; the answers stand in the order of `endings`.

    The same report again is answered with committed and repeated: its first answer may have been lost.
    """
    first: dict[int, Ending] = {}
    for ending in endings:
        first.setdefault(ending.token, ending)
    found = _settle(tx, epoch, batch(first.values()), "node") if first else {}
    answers = []
    for ending in endings:
        row, winner = found[ending.token], first[ending.token]
        # Of two different reports of one attempt in a batch the first counts.
        same = (ending.job_id, ending.node_id, ending.state) == (winner.job_id, winner.node_id, winner.state)
        committed = (row.moved or row.known) and same
        state = JobState(row.job_state) if row.job_state is not None else None
        repeated = committed and not (row.moved and ending is winner)
        answers.append(Settled(ending.job_id, ending.token, committed, repeated, state, row.newest))
    return answers


#: of attempts that are taken back although their node is there
UNPLACED_STATES = {Cause.PREEMPTED: AttemptState.PREEMPTED, Cause.DEADLINE: AttemptState.FAILED}


def unplace(
    tx: Connection,
    epoch: int,
    tokens: Sequence[int],
    cause: Cause,
    message: str | None = None,
    job_state: JobState = JobState.PENDING,
    retry_after_seconds: float | None = None,
    job_message: str | None = None,
) -> list[Settled]:
    """Take live attempts back by the scheduler's own decision; their state is UNPLACED_STATES of `cause`, or lost.

    Their jobs go to `job_state`: back to the queue, failed or held. Returned are those that were live.
    """
    state = UNPLACED_STATES.get(cause, AttemptState.LOST)
    common = {"state": state, "job_state": job_state, "cause": cause, "message": message, "job_message": job_message}
    rows = [{"token": token, "retry_after_seconds": retry_after_seconds, **common} for token in set(tokens)]
    found = _settle(tx, epoch, storable(rows), "scheduler") if rows else {}
    return [
        Settled(row.job_id, token, True, job_state=JobState(row.job_state)) for token, row in found.items() if row.moved
    ]


def _settle(tx: Connection, epoch: int, rows: str, actor: str) -> dict[int, Row[Any]]:
    ended = [str(state) for state in TERMINAL_JOB_STATES]
    values = {"rows": rows, "live": LIVE, "ended": ended, "epoch": epoch, "actor": actor}
    return {row.token: row for row in tx.execute(_SETTLE, values)}


@dataclass(frozen=True)
class Past:
    """An attempt that ended without a result, as the rules for the next one see it."""

    job_id: str
    number: int
    node_id: str
    node: str
    cause: Cause
    message: str
    started: bool
    #: from the start of its process, or from its assignment
    seconds: float


# A person who releases a job has looked at what was before.
_HISTORY = text(
    """
    SELECT attempts.job_id::text AS job_id, number, attempts.node_id::text AS node_id, nodes.name AS node, cause,
        coalesce(attempts.message, '') AS message, started_at IS NOT NULL AS started,
        extract(epoch FROM attempts.ended_at - coalesce(started_at, assigned_at))::float8 AS seconds
    FROM attempts JOIN nodes ON nodes.id = attempts.node_id
    WHERE job_id = ANY(CAST(:ids AS uuid[])) AND attempts.ended_at IS NOT NULL AND attempts.cause IS NOT NULL
        AND number > coalesce((SELECT max(attempt) FROM events WHERE events.job_id = attempts.job_id
            AND from_state = 'held' AND to_state = 'pending'), 0)
    ORDER BY number"""
)


def history(tx: Connection, job_ids: Sequence[str]) -> dict[str, list[Past]]:
    """The attempts of these jobs that ended without a result since each was accepted, or last released; oldest first.

    A job without any has no entry.
    """
    found: dict[str, list[Past]] = {}
    for row in tx.execute(_HISTORY, {"ids": list(job_ids)}) if job_ids else ():
        found.setdefault(row.job_id, []).append(Past(**{**row._mapping, "cause": Cause(row.cause)}))
    return found


# The newest word of other nodes on the same task, among the last few thousand attempts: the tokens are the primary key.
_BLAMED = text(
    """
    SELECT ended.node_id::text, ended.cause
    FROM attempts AS ended JOIN jobs ON jobs.id = ended.job_id
    LEFT JOIN LATERAL (
        SELECT others.cause FROM attempts AS others JOIN jobs AS their ON their.id = others.job_id
        WHERE others.token BETWEEN ended.token - :window AND ended.token + :window AND others.node_id <> ended.node_id
            AND their.task = jobs.task AND (others.state = 'completed' OR others.cause = ANY(:suspicious))
        ORDER BY others.ended_at DESC LIMIT 1
    ) AS last ON true
    WHERE ended.token = ANY(:tokens) AND ended.cause = ANY(:suspicious) AND last.cause IS NULL
    ORDER BY ended.token"""
)
#: how many attempts, of all jobs, a task is remembered for
_BLAME_WINDOW = 5000


def blamed(tx: Connection, tokens: Sequence[int], suspicious: Sequence[Cause]) -> list[tuple[str, Cause]]:
    """Of attempts that ended suspiciously, node and cause of those whose task did not end so on another node last."""
    if not tokens:
        return []
    values = {"tokens": list(tokens), "suspicious": [str(cause) for cause in suspicious], "window": _BLAME_WINDOW}
    return [(row[0], Cause(row[1])) for row in tx.execute(_BLAMED, values)]


@dataclass(frozen=True)
class Live:
    """An attempt under way, as a new leader finds it."""

    token: int
    job_id: str
    number: int
    node_id: str
    incarnation: str
    gpus: tuple[int, ...]
    gpu_memory_bytes: int
    cpus: int
    ram_bytes: int
    state: AttemptState
    task: str
    name: str | None
    owner: str
    project: str
    #: 0 for low to 3 for critical
    priority: int
    #: order of its job's acceptance
    seq: int
    resources: dict[str, Any]
    shape: str
    #: what replaces fields of its resources
    learned: dict[str, Any] | None
    cancel_requested: bool
    #: how long ago it was assigned, how long its lease still holds, and what is left until the job's deadline, by the
    #: database's clock
    age_seconds: float
    lease_left_seconds: float
    deadline_in_seconds: float | None
    #: of its process
    time_limit_seconds: float | None
    #: what is left of the time in which its job must have started; None for one that started before, too
    expires_in_seconds: float | None


_LIVE = text(
    """
    SELECT token, job_id::text AS job_id, number, attempts.node_id::text AS node_id, incarnation, gpus,
        gpu_memory_bytes, cpus, ram_bytes, attempts.state, task, name, owner, project, priority, seq, resources, shape,
        learned, cancel_requested_at IS NOT NULL AS cancel_requested,
        extract(epoch FROM statement_timestamp() - attempts.assigned_at)::float8 AS age_seconds,
        extract(epoch FROM lease_until - statement_timestamp())::float8 AS lease_left_seconds,
        extract(epoch FROM deadline_at - statement_timestamp())::float8 AS deadline_in_seconds, time_limit_seconds,
        CASE WHEN first_started_at IS NULL THEN extract(epoch FROM expires_at - statement_timestamp())::float8 END
            AS expires_in_seconds
    FROM attempts JOIN jobs ON jobs.id = job_id
    WHERE attempts.state IN ('assigned', 'running') ORDER BY token"""
)


def live(tx: Connection) -> list[Live]:
    """Every attempt under way, in the order of their tokens."""
    rows = (dict(row._mapping) for row in tx.execute(_LIVE))
    return [Live(**row | {"gpus": tuple(row["gpus"]), "state": AttemptState(row["state"])}) for row in rows]


_RENEW = text(
    """
    UPDATE attempts SET lease_until = statement_timestamp() + make_interval(secs => :lease_seconds)
    WHERE node_id = ANY(CAST(:node_ids AS uuid[])) AND state IN ('assigned', 'running')"""
)


def renew(tx: Connection, node_ids: Sequence[str], lease_seconds: float) -> int:
    """Let the leases of these nodes' live attempts run from now, by the database's clock; how many there were."""
    return tx.execute(_RENEW, {"node_ids": list(node_ids), "lease_seconds": lease_seconds}).rowcount


_OVERDUE = text(
    """
    SELECT token FROM attempts WHERE state IN ('assigned', 'running') AND lease_until < statement_timestamp()
    ORDER BY token"""
)


def overdue(tx: Connection) -> list[int]:
    """The tokens of live attempts whose lease is over, by the database's clock."""
    return [row[0] for row in tx.execute(_OVERDUE)]
