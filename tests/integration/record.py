"""A record with a leader and a node, short ways to do things in it, and the conditions that hold in every record."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, text

from cyxwiz_tasks.capability import Capability, Gpu
from cyxwiz_tasks.states import JOB_MOVES, AttemptState, Cause, JobState
from db import attempts, job_pages, jobs, new_jobs, nodes
from db.attempts import Assigned, Ending, NewAttempt, Settled, Start
from db.new_jobs import Accepted, NewJob

T = TypeVar("T")

LEASE_SECONDS = 15.0

# Each returns the rows that break a rule; a record in order has none.
RULES = {
    "a job's state is where its last move led": """
        SELECT id FROM jobs WHERE state IS DISTINCT FROM (
            SELECT to_state FROM events WHERE job_id = jobs.id AND to_state IS NOT NULL ORDER BY seq DESC LIMIT 1)""",
    "a move starts where the one before it led": """
        SELECT * FROM (SELECT seq, from_state, lag(to_state) OVER (PARTITION BY job_id ORDER BY seq) AS before
            FROM events WHERE job_id IS NOT NULL AND to_state IS NOT NULL) AS moves
        WHERE from_state IS DISTINCT FROM before""",
    "only legal moves": """
        SELECT seq FROM events WHERE job_id IS NOT NULL AND to_state IS NOT NULL AND from_state IS NOT NULL
            AND from_state || '>' || to_state <> ALL(:moves)""",
    "a job is live if and only if one attempt of it is, in a state of the same name, with its current token": """
        SELECT jobs.id FROM jobs LEFT JOIN attempts ON job_id = jobs.id AND attempts.state IN ('assigned', 'running')
        WHERE CASE WHEN jobs.state IN ('assigned', 'running')
            THEN attempts.state IS DISTINCT FROM jobs.state OR token <> current_token
                OR attempts.node_id <> jobs.node_id
            ELSE token IS NOT NULL END""",
    "a job is completed if and only if its last attempt is": """
        SELECT id FROM jobs WHERE (state = 'completed') <> EXISTS (SELECT 1 FROM attempts
            WHERE job_id = jobs.id AND attempts.state = 'completed' AND token = current_token)""",
    "tokens rise with the numbers of a job's attempts": """
        SELECT a.token FROM attempts a JOIN attempts b USING (job_id)
        WHERE a.number < b.number AND a.token >= b.token""",
    "attempts are counted": """
        SELECT id FROM jobs WHERE attempts <> (SELECT count(*) FROM attempts WHERE job_id = jobs.id)""",
    "what has ended has an end": """
        SELECT id FROM jobs WHERE (state IN ('completed', 'failed', 'cancelled')) <> (ended_at IS NOT NULL)
        UNION ALL
        SELECT job_id FROM attempts WHERE (state NOT IN ('assigned', 'running')) <> (ended_at IS NOT NULL)""",
    "nothing happens to a job that has ended": """
        SELECT later.seq FROM events ended JOIN events later USING (job_id)
        WHERE ended.to_state IN ('completed', 'failed', 'cancelled') AND later.seq > ended.seq""",
    "a job's node, token and number of attempts are the last that its moves named": """
        SELECT id FROM jobs CROSS JOIN LATERAL (SELECT max(token) AS token, max(attempt) AS attempt FROM events
            WHERE job_id = jobs.id AND to_state IS NOT NULL) AS told
        CROSS JOIN LATERAL (SELECT node_id FROM events
            WHERE job_id = jobs.id AND to_state IS NOT NULL ORDER BY seq DESC LIMIT 1) AS last
        WHERE current_token IS DISTINCT FROM told.token OR attempts <> coalesce(told.attempt, 0)
            OR (state IN ('assigned', 'running', 'completed') AND jobs.node_id IS DISTINCT FROM last.node_id)""",
    "no word of an older attempt, or of an older leader, is taken after one of a newer": """
        SELECT seq FROM (SELECT seq, token, max(token) OVER (PARTITION BY job_id ORDER BY seq) AS newest,
                epoch, max(epoch) OVER (ORDER BY seq) AS leads
            FROM events) AS told
        WHERE token < newest OR epoch < leads""",
    "a job's attempt begins when the one before it has ended": """
        SELECT later.token FROM attempts later JOIN attempts earlier USING (job_id)
        WHERE earlier.number < later.number AND (earlier.ended_at IS NULL OR earlier.ended_at > later.assigned_at)""",
    "one attempt at most gives a job its result": """
        SELECT job_id FROM attempts WHERE state = 'completed' GROUP BY job_id HAVING count(*) > 1
        UNION ALL
        SELECT id FROM jobs WHERE result IS NOT NULL AND state <> 'completed'""",
    "what has no cordon has no end of one, and a quarantine has an end": """
        SELECT id FROM nodes WHERE cordon IS NULL AND (cordon_until IS NOT NULL OR cordon_reason IS NOT NULL)
            OR cordon = 'quarantined' AND cordon_until IS NULL""",
    "what waits is nowhere": """
        SELECT id FROM jobs WHERE state IN ('pending', 'held')
            AND (node_id IS NOT NULL OR assigned_at IS NOT NULL OR started_at IS NOT NULL)""",
}
#: what a scheduler adds to that
SCHEDULER_RULES = {
    "a job is held, or fails, for a reason that its page tells": """
        SELECT id FROM jobs WHERE state IN ('held', 'failed') AND (cause IS NULL OR coalesce(message, '') = '')""",
    "an attempt that failed or was lost says why": """
        SELECT token FROM attempts WHERE state IN ('failed', 'lost') AND cause IS NULL""",
    "a job never fails for what nodes did to it": """
        SELECT id FROM jobs WHERE state = 'failed' AND cause IN ('node_lost', 'preempted')""",
}
_MOVES = [f"{a}>{b}" for a, targets in JOB_MOVES.items() for b in targets]


def broken_rules(tx: Connection, rules: dict[str, str] = RULES) -> dict[str, list[Any]]:
    found = {
        rule: tx.execute(text(sql), {"moves": _MOVES} if ":moves" in sql else {}).all() for rule, sql in rules.items()
    }
    return {rule: list(rows) for rule, rows in found.items() if rows}


def end_session_of_leader(engine: Engine) -> None:
    """What the server does to a leader that is silent."""
    sql = """SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
    with engine.begin() as tx:
        assert tx.execute(text(sql)).rowcount == 1


def new_job(id: str | None = None, **values: Any) -> NewJob:
    id = id or str(uuid.uuid4())
    given: dict[str, Any] = {
        "task": "cyxwiz.train",
        "resources": {"gpus": 1},
        "shape": '{"gpus":1}',
        "headers": {"id": id, "task": "cyxwiz.train"},
        "body": "W1tdLCB7fSwge31d",
        "properties": {"content-type": "application/json"},
        "digest": hashlib.sha256(id.encode()).hexdigest(),
    }
    return NewJob(id=id, **given | values)


def capability(gpus: int = 1, **values: Any) -> Capability:
    cards = [
        Gpu(index=i, uuid=f"GPU-{i}", model="NVIDIA A100", memory_bytes=80 << 30, compute_capability="8.0")
        for i in range(gpus)
    ]
    given: dict[str, Any] = {
        "hostname": "box",
        "os": "Linux",
        "os_version": "Debian 12",
        "architecture": "x86_64",
        "python": "3.11",
        "cyxwiz": "0",
        "cpu_model": "some",
        "cpu_cores": 8,
        "ram_bytes": 32 << 30,
        "disk_bytes": 1 << 40,
        "disk_free_bytes": 1 << 39,
        "gpus": cards,
        "slots": 4,
    }
    return Capability(**given | values)


@dataclass
class Record:
    """Each method is one committed transaction."""

    engine: Engine
    epoch: int
    node_id: str

    def do(self, function: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
        with self.engine.begin() as tx:
            return function(tx, *arguments, **keywords)

    def register(self, node_id: str | None = None, name: str = "one", incarnation: str = "i1", **values: Any) -> str:
        node_id = node_id or str(uuid.uuid4())
        node = nodes.Registration(node_id, name, f"{name}@box", incarnation, capability(**values))
        self.do(nodes.register, self.epoch, node)
        return node_id

    def accept(self, *new: NewJob) -> list[Accepted]:
        return self.do(new_jobs.accept, self.epoch, new)

    def pending(self, **values: Any) -> str:
        return self.accept(new_job(**values))[0].job_id

    def assign(self, *ids: str) -> dict[str, Assigned]:
        places = [
            NewAttempt(self.node_id, "i1", (0,), 1 << 30, 1, 1 << 30, job_id=id, scores={"fit": 1.0}) for id in ids
        ]
        return self.do(attempts.assign, self.epoch, places, LEASE_SECONDS)

    def start(self, *places: Assigned) -> set[int]:
        reports = [Start(place.job_id, place.token, place.node_id, 4711, "cuda:0") for place in places]
        return self.do(attempts.start, self.epoch, reports)

    def end(self, place: Assigned, state: AttemptState, job_state: JobState, **values: Any) -> Settled:
        ending = Ending(place.job_id, place.token, place.node_id, state, job_state, **values)
        return self.do(attempts.end, self.epoch, [ending])[0]

    def in_state(self, state: JobState) -> tuple[str, Assigned | None]:
        """A new job in this state, and its attempt if it has one."""
        id = self.pending()
        if state == JobState.PENDING:
            return id, None
        if state == JobState.HELD:
            self.do(jobs.hold, self.epoch, [id], Cause.CRASHED, "broke two nodes")
            return id, None
        place = self.assign(id)[id]
        if state == JobState.ASSIGNED:
            return id, place
        self.start(place)
        if state == JobState.RUNNING:
            return id, place
        self.end(place, AttemptState(state), state, cause=None if state == JobState.COMPLETED else Cause.ERROR)
        return id, place

    def job(self, id: str) -> dict[str, Any]:
        found = self.do(job_pages.get, id)
        assert found is not None
        return found

    def state(self, id: str) -> JobState:
        return JobState(self.job(id)["state"])

    def broken_rules(self) -> dict[str, list[Any]]:
        return self.do(broken_rules)
