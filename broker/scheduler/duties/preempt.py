"""Urgent jobs that fit nowhere take the place of less urgent ones, which are asked to write a checkpoint first."""

from __future__ import annotations

import time
from itertools import takewhile
from typing import TYPE_CHECKING, ClassVar

from broker.scheduler import preempting
from broker.scheduler.backlog import Waiting
from broker.scheduler.duties.duty import Duty
from broker.scheduler.giving_back import UNTOUCHED
from broker.scheduler.node import Node
from broker.scheduler.places import Wanted, able
from broker.scheduler.preemption import Clearing, Holder, choose
from broker.scheduler.turn import Turn
from cyxwiz_tasks.conditions import Applicant
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from db import quotas

if TYPE_CHECKING:
    from broker.scheduler.leader import Leader
    from broker.scheduler.memory import Live

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
        # Whose job gave its place back often is looked up only where somebody might have to go.
        if not self.leader.placed_all or not self._clearings(set()):
            return {}
        victims = 0
        with self.leader.turn() as turn:
            clearings = self._clearings(self._spared(turn))
            for waiting, clearing in clearings:
                preempting.clear(turn, waiting, clearing)
                victims += len(clearing.victims)
        return {"jobs": len(clearings), "victims": victims}

    def _spared(self, turn: Turn) -> set[str]:
        """Jobs that have given their place back so often that they are left alone."""
        limit = self.leader.settings.preempt_limit
        tried = [live.job_id for live in self.leader.memory.live.values() if live.number > limit and not live.rank]
        return {job_id for job_id, times in quotas.times_preempted(turn.tx, tried).items() if times >= limit}

    def _clearings(self, spared: set[str]) -> list[tuple[Waiting, Clearing]]:
        """For the next urgent jobs, the places to clear, of others than these; each knows of those before it."""
        memory = self.leader.memory
        found: list[tuple[Waiting, Clearing]] = []
        urgent = list(takewhile(lambda queue: queue.rank >= self._from_rank, memory.backlog))
        if not urgent or not memory.live:
            return []
        now = time.monotonic()
        holders = {name: holder_of(live, now) for name, live in memory.live.items()}
        for name, live in memory.live.items():
            if live.job_id in spared:
                holders[name] = holders[name]._replace(rank=UNTOUCHED)
        for queue in urgent:
            if queue.is_full or queue.resources.nodes > 1:
                continue  # it is no place that it waits for, or takes several, and nobody's
            nodes: list[tuple[Node, Wanted]] | None = None
            for waiting in queue.first(_JOBS):
                if len(found) == _JOBS:
                    return found
                if memory.claims.clears(waiting.job_id):
                    continue
                nodes = self._nodes(queue.resources, queue.applicant) if nodes is None else nodes
                promised = memory.claims.promised(queue.rank, besides=waiting.job_id)
                for _, other in found:
                    promised.setdefault(other.node_id, []).append(other.wanted)
                clearing = choose(nodes, queue.rank, holders, promised)
                if clearing is None:
                    break
                if not clearing.awaited:
                    continue  # it fits as things are: the next turn places it
                found.append((waiting, clearing))
                for job_id in clearing.victims:
                    holders[job_id] = holders[job_id]._replace(stopping=True)
        return found

    def _nodes(self, resources: Resources, applicant: Applicant) -> list[tuple[Node, Wanted]]:
        """Nodes that take work and could ever run this, by turns if there are many."""
        cluster = self.leader.memory.cluster
        self._start += _NODES
        return able(cluster, resources, applicant).some(cluster, self._start, _NODES)


def holder_of(live: Live, now: float) -> Holder:
    """An attempt under way, as the choice sees it; `now` is monotonic."""
    return Holder(live.waiting.priority.rank, live.lost_seconds(now), live.must_end, restarts=live.number - 1)
