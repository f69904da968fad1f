"""One world, played from its first arrival until nothing happens any more."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from broker.scheduler.backlog import Backlog, Queue, Waiting
from broker.scheduler.claims import ENDING_SECONDS, Claim
from broker.scheduler.cluster import Cluster
from broker.scheduler.holder import holder
from broker.scheduler.lines import Lines
from broker.scheduler.placement import Placement, Placer
from tests.worlds.books import Books, Broken, check_order, shown
from tests.worlds.making import Job, Plan, make

_LOST, _ENDS, _ARRIVES, _LOOK = range(4)
_LOOK_AGAIN_SECONDS = 650.0


@dataclass
class Promise:
    """A job was told from when on its place is there; void once somebody more urgent came, its project's quota holds it
    back, or a node was lost.
    """

    rank: int
    starts_at: float


class World:
    def __init__(self, seed: int, plan: Plan | None = None) -> None:
        self.plan = plan or make(seed)
        self.jobs = {job.waiting.job_id: job for job in self.plan.jobs}
        self.books, self.cluster, self.backlog = Books(self.plan.nodes), Cluster(), Backlog()
        self.placer = Placer(self.cluster, self.backlog)
        self.lines = Lines(self.plan.reserve_after_seconds)
        for name, able in self.plan.nodes.items():
            self.cluster.upsert_node(name, name, able, "1")
        self.backlog.settle(0.0, self.cluster.totals)
        for project, quota in self.plan.quotas.items():
            self.backlog.shares.set_quota(project, quota)
        # While somebody waits who could run, somebody runs, and each job does so once, and again after a loss.
        seconds = sum(job.seconds for job in self.plan.jobs)
        self._longest_wait_seconds = (1 + len(self.plan.losses)) * seconds + _LOOK_AGAIN_SECONDS
        self.now = 0.0
        self.started: dict[str, float] = {}
        self.waited: dict[str, float] = {}
        self.promises: dict[str, Promise] = {}
        #: what was seen, so that a run can tell that it is no empty one
        self.counts = dict.fromkeys(("placed", "gangs", "reserved", "backfilled", "kept_promises", "lost"), 0)
        self._tries: dict[str, int] = dict.fromkeys(self.jobs, 0)
        self._events: list[tuple[float, int, str, int]] = [
            *((job.arrives, _ARRIVES, job.waiting.job_id, 0) for job in self.plan.jobs),
            *((at, _LOST, name, 0) for name, at in self.plan.losses.items()),
        ]

    def play(self) -> dict[str, int]:
        """What there was, by kind. Raises Broken."""
        heapify(self._events)
        while self._events:
            self.now = self._events[0][0]
            while self._events and self._events[0][0] == self.now:
                self._happen(*heappop(self._events)[1:])
            self.backlog.settle(self.now, self.cluster.totals)
            self._place()
            self._reserve()
            self._place()
            # Who was blocked for long enough by then has a place reserved, whether or not anything happens.
            if (
                len(self.backlog)
                and self.started
                and (not self._events or self._events[0][0] > self.now + _LOOK_AGAIN_SECONDS)
            ):
                heappush(self._events, (self.now + _LOOK_AGAIN_SECONDS, _LOOK, "", 0))
        self._check_nobody_was_forgotten()
        return self.counts

    def _happen(self, what: int, name: str, tried: int) -> None:
        if what == _ARRIVES:
            self._wait(self.jobs[name])
        elif what == _ENDS and self._tries[name] == tried:
            self._end(name)
        elif what == _LOST:
            self.counts["lost"] += 1
            self.promises.clear()
            gone = self.books.lose(name)
            self.cluster.remove_node(name)
            for job_id in sorted(gone):
                self._end(job_id)
                self._wait(self.jobs[job_id])

    def _wait(self, job: Job) -> None:
        self.waited[job.waiting.job_id] = self.now
        self.backlog.add(job.waiting)

    def _end(self, job_id: str) -> None:
        """Its places are free again, on all its nodes; an end that was due belongs to an earlier try."""
        self._tries[job_id] += 1
        del self.started[job_id]
        self.books.release(job_id)
        for rank in range(self.jobs[job_id].waiting.resources.nodes):
            self.cluster.release(holder(job_id, rank))
        self.backlog.discharge(job_id)

    # One turn ---------------------------------------------------------------------------------------------------------

    def _place(self) -> None:
        claims = list(self.placer.claims)
        held_back = {queue.head[1] for queue in self.backlog if queue.head and queue.is_held_back}
        placed = self.placer.place(1000, self.now)
        for one in placed:
            self.books.take(one)
            self._start(one)
        if not self.counts["lost"]:
            self.books.check_quotas(self.plan.quotas)
        claimants = {claim.job_id for claim in claims}
        check_order([one for one in placed if one.job_id not in claimants], self.backlog)
        for queue in self.backlog:
            if queue.head is not None and not queue.is_held_back:
                self._check_has_no_room(queue)
                if queue.head[1] not in held_back:
                    self._check_was_not_passed(queue, placed, claims)

    def _start(self, one: Placement) -> None:
        job_id, rank = one.job_id, one.waiting.priority.rank
        self.started[job_id] = self.now
        self.counts["placed"] += 1
        self.counts["gangs"] += len(one.members) > 1
        heappush(self._events, (self.now + self.jobs[job_id].seconds, _ENDS, job_id, self._tries[job_id]))
        if self.now - self.waited[job_id] > self._longest_wait_seconds:
            raise Broken(f"{shown(one.waiting)} waited for {self.now - self.waited[job_id]:.0f} s")
        promise = self.promises.pop(job_id, None)
        if promise is not None:
            self.counts["kept_promises"] += 1
            if self.now > promise.starts_at:
                raise Broken(f"{shown(one.waiting)} was to start by {promise.starts_at}, and did at {self.now}")
        self._outrank(rank)

    def _outrank(self, rank: int) -> None:
        self.promises = {job_id: promise for job_id, promise in self.promises.items() if promise.rank >= rank}

    def _void(self, queue: Queue) -> None:
        self.promises = {job_id: promise for job_id, promise in self.promises.items() if job_id not in queue}

    def _check_has_no_room(self, queue: Queue) -> None:
        """Nobody waits for what is free."""
        waiting = queue.find(queue.head[1])  # type: ignore[index]
        rooms = [name for name in self.books.could_run(waiting) if self._has_room(name, queue)]
        is_reserved = waiting.job_id in self.placer.claims and waiting.resources.nodes > 1
        if len(rooms) >= waiting.resources.nodes and not is_reserved:
            raise Broken(f"{shown(waiting)} waits, and there is room for it on {rooms}")

    def _check_was_not_passed(self, queue: Queue, placed: list[Placement], claims: list[Claim]) -> None:
        """Nobody less urgent has what he needs, but who ends before the one starts for whom the place is kept."""
        waiting = queue.find(queue.head[1])  # type: ignore[index]
        if waiting.resources.nodes > 1:
            return
        quotas = self.backlog.shares.quotas
        for one in placed:
            other = one.waiting
            if other.priority.rank >= queue.rank:
                continue
            if not quotas.supposing([(other.project, other.amounts, -1)]).admits(queue.project, queue.amounts):
                continue  # he had no right to what that one took
            for name in {member.node_id for member in one.members}.intersection(self.books.could_run(waiting)):
                here = [claim for claim in claims if claim.node_id == name]
                if self._has_room(name, queue, one.job_id):
                    if not any(self._is_backfilled(other, waiting, claim) for claim in here):
                        raise Broken(f"{shown(other)} took the place of {shown(waiting)} on {name}")
                    self.counts["backfilled"] += 1

    def _is_backfilled(self, placed: Waiting, passed: Waiting, claim: Claim) -> bool:
        """Whether a job may use what is kept for the one with this claim, and the one that it passed may not."""
        may_use = self._ends_by(placed, claim.starts_at)
        is_more_urgent = passed.priority.rank > claim.rank
        return may_use and (
            claim.job_id == passed.job_id or not (is_more_urgent or self._ends_by(passed, claim.starts_at))
        )

    def _ends_by(self, waiting: Waiting, moment: float | None) -> bool:
        limit = waiting.time_limit_seconds
        return moment is not None and limit is not None and self.now + limit + ENDING_SECONDS <= moment

    def _has_room(self, node: str, queue: Queue, without: str | None = None) -> bool:
        """Beside what is kept there for others."""
        job_id = queue.head[1]  # type: ignore[index]
        kept = [kept for name, kept in self.cluster.node(node).kept.items() if name.partition(".")[0] != job_id]
        return self.books.has_room(node, queue.find(job_id), kept, without)

    def _reserve(self) -> None:
        claims = self.placer.claims
        planned = self.lines.plan(self.backlog, self.cluster, claims, self.now, self._end_of, {})
        claims.reserve(planned)
        self.counts["reserved"] += len(planned)
        for claim in planned:
            self._outrank(claim.rank)
        for queue in self.backlog:
            if queue.is_held_back:
                self._void(queue)
        for claim in planned:
            if claim.starts_at is not None and claim.job_id not in self.promises:
                self.promises[claim.job_id] = Promise(claim.rank, claim.starts_at)

    def _end_of(self, name: str) -> float | None:
        job_id = name.partition(".")[0]
        limit = self.jobs[job_id].waiting.time_limit_seconds
        return None if limit is None else max(self.now, self.started[job_id] + limit + ENDING_SECONDS)

    # The end ----------------------------------------------------------------------------------------------------------

    def _check_nobody_was_forgotten(self) -> None:
        """Nothing runs any more: who still waits could run nowhere, or not within his project's quota."""
        if self.started:
            raise Broken(f"{sorted(self.started)} run for ever")
        for queue in self.backlog:
            waiting = queue.find(queue.head[1])  # type: ignore[index]
            fits = len(self.books.could_run(waiting)) >= waiting.resources.nodes
            if fits and queue.admitted:
                raise Broken(f"{shown(waiting)} starves")
