"""Urgent jobs that fit nowhere take the place of less urgent ones, which are asked to write a checkpoint first."""

from __future__ import annotations

import time
from itertools import takewhile
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from broker.scheduler import preempting
from broker.scheduler.admission import Admission
from broker.scheduler.backlog import Waiting
from broker.scheduler.demand import demand_of
from broker.scheduler.duties.duty import Duty
from broker.scheduler.node import Node
from broker.scheduler.preemption import Clearing, Holder, Wanted, choose
from cyxwiz_tasks.conditions import Applicant
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from db.models import NodeState

if TYPE_CHECKING:
    from broker.scheduler.leader import Leader

#: jobs for which one run clears places, and nodes that it looks at for each: what it costs has a limit
_JOBS, _NODES = 8, 128


class Preempt(Duty):
    every_seconds: ClassVar[float] = 0.5

    def __init__(self, leader: Leader) -> None:
        super().__init__(leader)
        setting = leader.settings.preempt_from
        self._from_rank = Priority(setting).rank if setting != "never" else len(Priority)
        #: where the next look at the nodes begins
        self._start = 0

    def run_once(self) -> dict[str, int]:
        memory = self.leader.memory
        for job_id in memory.claims:
            if job_id not in memory.backlog:
                memory.claims.drop(job_id)
        clearings = self._clearings() if self.leader.placed_all else []
        if not clearings:
            return {}
        victims = 0
        with self.leader.turn() as turn:
            for waiting, clearing in clearings:
                preempting.clear(turn, waiting, clearing)
                victims += len(clearing.victims)
        return {"jobs": len(clearings), "victims": victims}

    def _clearings(self) -> list[tuple[Waiting, Clearing]]:
        """For the next urgent jobs, the places to clear; each knows of those before it."""
        memory = self.leader.memory
        found: list[tuple[Waiting, Clearing]] = []
        urgent = list(takewhile(lambda queue: queue.rank >= self._from_rank, memory.backlog))
        if not urgent or not memory.live:
            return []
        now, promised = time.monotonic(), memory.claims.promised()
        holders = {
            job_id: Holder(
                live.waiting.priority.rank, now - live.assigned_at, live.cancel_asked or live.stop is not None
            )
            for job_id, live in memory.live.items()
        }
        for queue in urgent:
            if queue.account.person is not None and queue.account.person.is_full:
                continue  # it is no place that it waits for
            nodes: list[tuple[Node, Wanted]] | None = None
            for waiting in queue.first(_JOBS):
                if len(found) == _JOBS:
                    return found
                if waiting.job_id in memory.claims:
                    continue
                nodes = self._nodes(queue.resources, queue.applicant) if nodes is None else nodes
                clearing = choose(nodes, queue.rank, holders, promised)
                if clearing is None:
                    break
                if not clearing.awaited:
                    continue  # it fits as things are: the next turn places it
                found.append((waiting, clearing))
                promised.setdefault(clearing.node_id, []).append(clearing.wanted)
                for job_id in clearing.victims:
                    holders[job_id] = holders[job_id]._replace(stopping=True)
        return found

    def _nodes(self, resources: Resources, applicant: Applicant) -> list[tuple[Node, Wanted]]:
        """Nodes that take work and could ever run this, by turns if there are many."""
        cluster = self.leader.memory.cluster
        admission = Admission(resources, cluster.refusing(resources, applicant))
        rows = np.array([node.row for node in cluster if _takes_work(node)], np.int32)
        if not len(rows):
            return []
        admitted = admission.gpus(cluster.columns, rows)
        fitting = admission.nodes(cluster, rows, admitted).nonzero()[0]
        if len(fitting) > _NODES:
            self._start = (self._start + _NODES) % len(fitting)
            fitting = np.roll(fitting, -self._start)[:_NODES]
        demand = demand_of(resources)
        return [
            (cluster.node_at(int(rows[at])), Wanted(demand, tuple(admitted[at].nonzero()[0].tolist())))
            for at in fitting.tolist()
        ]


def _takes_work(node: Node) -> bool:
    """Whether it would if it had room."""
    return node.state == NodeState.UP and node.cordon is None and node.opens_at is None
