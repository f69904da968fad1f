"""When a job that waits will start, as far as that can be said, and what it rests on: a part of the answer to `why`.

Attempts under way end by their time limits or deadlines; those without one are expected to take as long as others took
(`history.py`). Jobs ahead take such places first, and hold them as long (`openings.py`). Jobs still to come are not
foreseen, and fair shares move on: so it is an estimate, and says on what it rests. Where nothing is known there is
none, with the reason.

It is worked out only when somebody asks, and looks at a limited number of nodes and kinds of work.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from math import ceil
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel

from broker.scheduler.admission import Admission
from broker.scheduler.backlog import Queue, Waiting
from broker.scheduler.columns import Rows
from broker.scheduler.demand import demand_of
from broker.scheduler.history import Expected, History
from broker.scheduler.memory import Memory
from broker.scheduler.node import Node
from broker.scheduler.openings import openings, turn_at
from broker.scheduler.places import Wanted, able
from broker.scheduler.position import queues_ahead
from cyxwiz_tasks.cli.durations import show_seconds
from cyxwiz_tasks.conditions import Applicant
from cyxwiz_tasks.resources import Resources
from db.models import NodeState

#: nodes that are looked at, and kinds of work ahead that are asked whether they could run there
_NODES, _KINDS = 128, 64
#: attempts without a time limit whose names are looked up
_NAMES = 512
_LIMITS = "time limits"


class Estimate(BaseModel):
    """`start` is None where nothing is known, and `basis` says why."""

    start: datetime | None
    basis: str

    def __str__(self) -> str:
        if self.start is None:
            return f"No estimate of its start: {self.basis}."
        left_seconds = self.start.timestamp() - time.time()
        when = f"about {self.start:%H:%M} UTC on {self.start:%d %B}, in {show_seconds(ceil(left_seconds))}"
        return f"Estimated start: {when if left_seconds >= 1 else 'now'}. Basis: {self.basis}."

    def too_late(self, start_by: datetime) -> list[str]:
        """What is said of a job that must have started by then, if that is not to be expected."""
        if self.start is None or self.start <= start_by:
            return []
        limit = f"{start_by.astimezone(UTC):%H:%M} UTC on {start_by.astimezone(UTC):%d %B}"
        return [f"That is after {limit}, when it must have started: unless jobs end early, it is cancelled then."]


class _Ahead(NamedTuple):
    """Jobs that take such places first, and how long each holds one: None if nobody knows."""

    jobs: int
    seconds_each: float | None
    bases: Counter[str]


#: the names of jobs, by their ids
Names = Callable[[list[str]], dict[str, str]]


def estimate(
    memory: Memory,
    history: History,
    names: Names,
    resources: Resources,
    applicant: Applicant,
    waiting: Waiting | None = None,
) -> Estimate:
    """Of the job that waits in line, or with None of one submitted now."""
    if waiting is not None and (held_back := _held_back(memory, waiting)):
        return Estimate(start=None, basis=held_back)
    claim = memory.claims.get(waiting.job_id) if waiting is not None else None
    if claim is not None and claim.starts_at is not None:
        return Estimate(start=_clock(claim.starts_at), basis="the reservation that it has, by time limits")
    rows = _rows(memory)
    fitting = able(memory.cluster, resources, applicant, rows)
    nodes = fitting.some(memory.cluster, 0, _NODES)
    if claim is not None:
        claims = memory.claims.of(claim.job_id)
        nodes = [one for own in claims for one in fitting.one(memory.cluster, own.node_id)]
    if not nodes:
        return Estimate(start=None, basis="no node that fits takes new work now")
    ahead = _Ahead(0, None, Counter())
    if claim is None:
        ahead = _ahead(memory, history, resources, applicant, waiting, fitting.rows)
        # Of many nodes some were looked at, and of those ahead as many are in line for these.
        ahead = ahead._replace(jobs=ceil(ahead.jobs * len(nodes) / len(fitting.rows)))
    return _estimated(memory, nodes, _ends(memory, history, names, nodes), ahead)


def _held_back(memory: Memory, waiting: Waiting) -> str | None:
    queue = memory.backlog.queue_of(waiting.job_id)
    if queue is None:
        return "it does not wait in line"
    if queue.is_full:
        return "it waits until fewer jobs of its owner run"
    return None if queue.admitted else "it waits for the quota of its project"


def _rows(memory: Memory) -> Rows:
    """Nodes that take work now, or will when they open."""
    usable = [node.row for node in memory.cluster if node.state == NodeState.UP and node.cordon is None]
    return np.array(usable, np.int32)


def _estimated(
    memory: Memory, nodes: list[tuple[Node, Wanted]], ends: dict[str, tuple[float, str]], ahead: _Ahead
) -> Estimate:
    now = time.monotonic()
    known = {job_id: end for job_id, (end, _) in ends.items()}
    members = nodes[0][1].demand.nodes
    # The members of a gang run on different nodes: of each, the first place counts.
    found = [
        moment
        for node, wanted in nodes
        for moment in openings(node, wanted, known, now + _opens_in(node))[: 1 if members > 1 else None]
    ]
    start = turn_at(found, (ahead.jobs + 1) * members - 1, ahead.seconds_each) if len(found) >= members else None
    if start is None:
        running = sum(len(node.holdings) for node, _ in nodes)
        return Estimate(start=None, basis=_unknown(ahead, running, len(known), len(found) >= members))
    by = Counter(basis for end, basis in ends.values() if end <= start)
    limited = by.pop(_LIMITS, 0)
    parts = [f"the time limits of {_attempts(limited)} there"] if limited else []
    if by:
        parts.append(f"{_first(by)}, for {_attempts(by.total())} there")
    if ahead.jobs:
        each = f", {show_seconds(ahead.seconds_each)} each by {_first(ahead.bases)}" if ahead.seconds_each else ""
        jobs = "1 job" if ahead.jobs == 1 else f"{ahead.jobs} jobs"
        parts.append(f"{jobs} in line before it for such a place{each}")
    if any(node.opens_at is not None for node, _ in nodes) and start > now and not parts:
        parts.append("the hours of the nodes")
    return Estimate(start=_clock(start), basis="; ".join(parts) or "there is room now")


def _attempts(count: int) -> str:
    return "1 attempt" if count == 1 else f"{count} attempts"


def _first(bases: Counter[str]) -> str:
    """What most of it rests on."""
    [(basis, _)] = bases.most_common(1)
    return f"{basis} (and {len(bases) - 1} more such figures)" if len(bases) > 1 else basis


def _unknown(ahead: _Ahead, running: int, ends: int, any_place: bool) -> str:
    if any_place:
        jobs = "1 job in line before it has" if ahead.jobs == 1 else f"{ahead.jobs} jobs in line before it have"
        return f"the {jobs} no time limit, and nothing has finished here to compare with"
    if not running:
        return "what is free is kept for others"
    have = "has" if running - ends == 1 else "have"
    return (
        f"the {_attempts(running - ends)} there {have} no time limit, and nothing that has finished here took as long"
    )


def _ends(
    memory: Memory, history: History, names: Names, nodes: list[tuple[Node, Wanted]]
) -> dict[str, tuple[float, str]]:
    """When (monotonic) the attempts on these nodes end, and by what that is told, so far as it can be."""
    limits = {holder: memory.end_of(holder) for node, _ in nodes for holder in node.holdings}
    found = {holder: (end, _LIMITS) for holder, end in limits.items() if end is not None}
    unlimited = [holder for holder in limits if holder not in found and holder in memory.live]
    # Those of a gang's members are of one job.
    name_of = names([memory.live[holder].job_id for holder in unlimited[:_NAMES]]) if len(history) else {}
    for holder in unlimited:
        live = memory.live[holder]
        elapsed_seconds = time.monotonic() - live.assigned_at
        expected = history.expected(live.waiting.owner, name_of.get(live.job_id), elapsed_seconds)
        if expected is not None:
            found[holder] = (live.assigned_at + expected.seconds, expected.basis)
    return found


def _ahead(
    memory: Memory,
    history: History,
    resources: Resources,
    applicant: Applicant,
    waiting: Waiting | None,
    rows: Rows,
) -> _Ahead:
    """The jobs ahead that could run on these rows, in places of this job's size."""
    sequence = waiting.sequence if waiting is not None else None
    places, seconds, bases, is_known = 0.0, 0.0, Counter[str](), True
    could: dict[str, bool] = {}
    gpus = max(1, demand_of(resources).gpus)
    for queue, count in queues_ahead(memory.backlog, applicant.priority, sequence, applicant.owner, applicant.project):
        if queue.is_held_back or not count:
            continue
        if len(could) < _KINDS and queue.shape not in could:
            could[queue.shape] = _could_run(memory, queue, rows)
        if not could.get(queue.shape, True):
            continue
        size = count * max(1, demand_of(queue.resources).gpus) / gpus
        expected = _expected(history, queue)
        places += size
        if expected is None:
            is_known = False
        else:
            seconds += size * expected.seconds
            bases[expected.basis] += ceil(size)
    # Whoever has a place kept comes first, too.
    claims = _claims(memory, applicant, rows)
    return _Ahead(max(ceil(places), claims), seconds / places if places and is_known else None, bases)


def _claims(memory: Memory, applicant: Applicant, rows: Rows) -> int:
    nodes = {memory.cluster.node_at(row).node_id for row in rows.tolist()}
    return sum(claim.node_id in nodes and claim.rank >= applicant.priority.rank for claim in memory.claims)


def _could_run(memory: Memory, queue: Queue, rows: Rows) -> bool:
    cluster = memory.cluster
    admission = Admission(queue.resources, cluster.refusing(queue.resources, queue.applicant))
    return bool(admission.nodes(cluster, rows, admission.gpus(cluster.columns, rows)).any())


def _expected(history: History, queue: Queue) -> Expected | None:
    """How long a job of this queue holds its place."""
    if queue.time_limit_seconds is not None:
        return Expected(queue.time_limit_seconds, "their time limits")
    return history.expected(queue.owner)


def _opens_in(node: Node) -> float:
    """Seconds until a node that is outside its hours opens."""
    return max(0.0, node.opens_at.timestamp() - time.time()) if node.opens_at is not None else 0.0


def _clock(moment: float) -> datetime:
    """A moment of `time.monotonic()` by the wall's clock."""
    return datetime.fromtimestamp(time.time() + max(0.0, moment - time.monotonic()), UTC)
