"""A fleet on a simulated clock: jobs arrive, are placed by a policy, end, and give their places back.

A job that is preempted goes on from its last checkpoint, of which it writes one every `CHECKPOINT_SECONDS`: what it did
since is lost, and so is the time in which it starts again.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from broker.scheduler.backlog import Waiting, coarse
from broker.scheduler.cluster import Cluster
from broker.scheduler.consolidation import RESTART_SECONDS, Mover, consolidate
from broker.scheduler.demand import demand_of
from broker.scheduler.places import Wanted, able
from broker.scheduler.preemption import Holder, choose
from cyxwiz_tasks.conditions import Applicant
from cyxwiz_tasks.resources import PlacementPolicy
from cyxwiz_tasks.settings import Settings
from tests.fleet.measures import Report, Run, judge
from tests.fleet.policies import Ours
from tests.fleet.workload import Job
from tests.unit.fleet import A100, capability

CHECKPOINT_SECONDS = 600.0
CONSOLIDATE_EVERY_SECONDS = 60.0
_CONSOLIDATE_LIMIT = int(Settings.model_fields["consolidate_limit"].default)
_ALL = 1_000_000
_ARRIVES, _ENDS = 0, 1


def make_fleet(nodes: int, placement: PlacementPolicy = "balanced") -> tuple[Cluster, int]:
    """A cluster of nodes with eight and with four GPUs by turns, and how many GPUs it has."""
    cluster, gpus = Cluster(placement=placement), 0
    for number in range(nodes):
        size = 8 if number % 2 == 0 else 4
        able = capability(*[A100] * size, slots=size, cpus=64, ram="512GB", checkpoint_place="store")
        cluster.upsert_node(f"node-{number}", f"node-{number}", able, "1")
        gpus += size
    return cluster, gpus


class Simulation:
    def __init__(self, jobs: Sequence[Job], policy: Ours, gpus: int) -> None:
        self.policy, self.gpus = policy, gpus
        self.runs = {job.id: Run(job) for job in jobs}
        self.until = max(job.arrival for job in jobs)
        #: what is left of each job, and since when it runs
        self._left = {job.id: job.seconds for job in jobs}
        self._since: dict[str, float] = {}
        self._numbers = {job.id: number for number, job in enumerate(jobs)}
        self._events = [(job.arrival, _ARRIVES, number, job.id, 0) for number, job in enumerate(jobs)]
        self._order = count(len(jobs))
        self._looks_again_at = 0.0
        self.busy = self.useful = 0.0
        heapq.heapify(self._events)

    def run(self) -> Report:
        """Until all jobs have ended."""
        while self._events:
            now = self._events[0][0]
            while self._events and self._events[0][0] == now:
                self._happen(*heapq.heappop(self._events))
            self._place(now)
            if self._preempt(now):
                self._place(now)
            self.policy.reserve(now)
            while self._consolidate(now):
                self._place(now)
                self.policy.reserve(now)
        runs = list(self.runs.values())
        report = judge(runs, self.gpus, self.busy, self.useful, self.until)
        return replace(report, **self._promises())

    def _promises(self) -> dict[str, Any]:
        """What became of reservations whose beginning was known."""
        told = [(self.runs[job_id], promise) for job_id, promise in self.policy.promised.items()]
        # Who had a place before, and lost it, was told nothing of its first start.
        kept = [(run.started, run, promise) for run, promise in told if run.started and run.started >= promise.made_at]
        late = [promise for started, _, promise in kept if started > promise.starts_at]
        waits = [started - promise.made_at for started, run, promise in kept if run.job.gpus > 4]
        return {
            "promised": len(kept),
            "outranked": sum(promise.is_outranked for promise in late),
            "broken_promises": sum(not promise.is_outranked for promise in late),
            "longest_after_promise_seconds": max(waits, default=0.0),
        }

    def _happen(self, now: float, what: int, _: int, job_id: str, life: int) -> None:
        run = self.runs[job_id]
        if what == _ARRIVES:
            self._wait(run.job)
        elif run.preempted == life:
            self._leave(now, run, self._left[job_id])
            run.ended = now

    def _wait(self, job: Job) -> None:
        # Starting again is not part of what the submitter thought of.
        limit = job.time_limit + RESTART_SECONDS if job.time_limit is not None else None
        waiting = Waiting(job.id, self._numbers[job.id], job.resources, job.priority, job.owner, "", coarse(limit))
        self.policy.add(waiting)

    def _place(self, now: float) -> None:
        for placement in self.policy.place(now):
            run = self.runs[placement.job_id]
            run.started = now if run.started is None else run.started
            self._since[placement.job_id] = now
            ends = now + self._left[placement.job_id] + (RESTART_SECONDS if run.preempted else 0.0)
            heapq.heappush(self._events, (ends, _ENDS, next(self._order), placement.job_id, run.preempted))

    def _preempt(self, now: float) -> bool:
        """Clear places for urgent jobs that fit nowhere; whether there was any."""
        cluster, cleared = self.policy.cluster, False
        for waiting in self.policy.urgent():
            demand = demand_of(waiting.resources)
            # Every GPU of this fleet will do.
            wanted = [
                (node, Wanted(demand, tuple(range(len(node.gpu_indexes)))))
                for node in cluster
                if len(node.gpu_indexes) >= demand.gpus
            ]
            holders = {job_id: self._holder(now, self.runs[job_id]) for job_id in self._since}
            clearing = choose(wanted, waiting.priority.rank, holders, {})
            for job_id in clearing.victims if clearing is not None else ():
                self._give_up(now, self.runs[job_id])
                cleared = True
        return cleared

    def _consolidate(self, now: float) -> bool:
        """Let smaller jobs move together for one that has a place reserved; whether any did."""
        if not self.policy.consolidates or now < self._looks_again_at:
            return False
        cluster, claims = self.policy.cluster, self.policy.placer.claims
        movers = {job_id: mover for job_id in self._since if (mover := self._mover(now, self.runs[job_id]))}
        for claim in claims:
            nodes = able(cluster, claim.waiting.resources, Applicant("", "", claim.waiting.priority)).some(
                cluster, 0, _ALL
            )
            taken = {other.node_id for other in claims if other.job_id != claim.job_id}
            clearing = consolidate(claim, nodes, cluster, movers, (), taken, now)
            if clearing is not None:
                claims.clear(claim.waiting, clearing)
                for job_id in clearing.victims:
                    self._give_up(now, self.runs[job_id])
                    self.runs[job_id].moved += 1
                return True
        self._looks_again_at = now + CONSOLIDATE_EVERY_SECONDS
        return False

    def _mover(self, now: float, run: Run) -> Mover | None:
        """As an attempt that can go on elsewhere: it has written a checkpoint, and was not preempted too often."""
        ran = self._ran(now, run)
        if ran < CHECKPOINT_SECONDS or run.preempted >= _CONSOLIDATE_LIMIT:
            return None
        job = run.job
        waiting = Waiting(job.id, self._numbers[job.id], job.resources, job.priority, job.owner, "", None)
        return Mover(waiting, ran % CHECKPOINT_SECONDS, "store")

    def _holder(self, now: float, run: Run) -> Holder:
        lost = self._ran(now, run) % CHECKPOINT_SECONDS
        return Holder(run.job.priority.rank, lost, stopping=False, restarts=run.preempted)

    def _ran(self, now: float, run: Run) -> float:
        """For how long it has been at work in its place, but for starting again."""
        return max(0.0, now - self._since[run.job.id] - (RESTART_SECONDS if run.preempted else 0.0))

    def _give_up(self, now: float, run: Run) -> None:
        kept = self._ran(now, run) // CHECKPOINT_SECONDS * CHECKPOINT_SECONDS
        self._leave(now, run, kept)
        self._left[run.job.id] -= kept
        run.preempted += 1
        self._wait(run.job)

    def _leave(self, now: float, run: Run, useful_seconds: float) -> None:
        since = self._since.pop(run.job.id)
        run.held_seconds += now - since
        counted = max(0.0, min(now, self.until) - since)
        self.busy += run.job.gpus * counted
        self.useful += run.job.gpus * min(useful_seconds, counted)
        self.policy.over(run.job.id)
