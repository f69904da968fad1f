"""Urgent jobs that fit nowhere take the place of less urgent ones, which are asked to write a checkpoint first."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import TYPE_CHECKING, Any, ClassVar

from broker.scheduler import preempting
from broker.scheduler.backlog import Queue, Waiting
from broker.scheduler.duties.duty import Duty
from broker.scheduler.giving_back import UNTOUCHED
from broker.scheduler.node import Node
from broker.scheduler.places import Wanted, able
from broker.scheduler.preemption import Clearing, Holder, choose, with_their_gangs
from broker.scheduler.turn import Turn
from cyxwiz_tasks.states import Priority
from db import quotas

if TYPE_CHECKING:
    from broker.scheduler.leader import Leader
    from broker.scheduler.live import Live

#: jobs for which one run clears places, and nodes that it looks at for each: what it costs has a limit
_JOBS, NODES = 8, 128


class Preempt(Duty):
    every_seconds: ClassVar[float] = 0.5

    def __init__(self, leader: Leader) -> None:
        super().__init__(leader)
        setting = leader.settings.preempt_from
        self._from_rank = Priority(setting).rank if setting != "never" else len(Priority)
        #: where this run's look at the nodes begins: whoever finds a place looks again, in a turn, and must find it
        self._start = 0

    def run_once(self) -> dict[str, int]:
        self._start += NODES
        # Whose job gave its place back often is looked up only where somebody might have to go.
        if not self.leader.placed_all or not self._clearings(set()):
            return {}
        victims = 0
        with self.leader.turn() as turn:
            clearings = self._clearings(self._spared(turn, self.leader.settings.preempt_limit))
            for waiting, clearing in clearings:
                preempting.clear(turn, waiting, clearing)
                victims += len(clearing.victims)
        return {"jobs": len(clearings), "victims": victims}

    def _spared(self, turn: Turn, limit: int) -> set[str]:
        """Jobs that have given their place back so often that they are left alone."""
        tried = [live.job_id for live in self.leader.memory.live.values() if live.number > limit and not live.rank]
        return {job_id for job_id, times in quotas.times_preempted(turn.tx, tried).items() if times >= limit}

    def _clearings(self, spared: set[str]) -> list[tuple[Waiting, Clearing]]:
        """For the next urgent jobs, the places to clear, of others than these; each knows of those before it."""
        memory = self.leader.memory
        found: list[tuple[Waiting, Clearing]] = []
        urgent = list(takewhile(lambda queue: queue.rank >= self._from_rank, memory.backlog))
        if not urgent or not memory.live:
            return []
        holders = holders_of(memory.live, time.monotonic())
        _change(holders, (name for name, live in memory.live.items() if live.job_id in spared), rank=UNTOUCHED)
        for queue in urgent:
            if queue.is_full:
                continue  # it is no place that it waits for
            nodes: list[tuple[Node, Wanted]] | None = None
            for waiting in queue.first(_JOBS):
                if len(found) == _JOBS:
                    return found
                if memory.claims.clears(waiting.job_id):
                    continue
                nodes = self._nodes(queue) if nodes is None else nodes
                promised = memory.claims.promised(queue.rank, besides=waiting.job_id)
                for _, other in found:
                    promise(other, promised)
                members = queue.resources.nodes
                clearing = choose(nodes, queue.rank, holders, promised, members)
                if clearing is None or not self._admits(queue, clearing, found):
                    break
                if not clearing.awaited and members == 1:
                    continue  # it fits as things are: the next turn places it
                found.append((waiting, clearing))
                _change(holders, with_their_gangs(clearing.victims, holders), stopping=True)
        return found

    def _admits(self, queue: Queue, clearing: Clearing, before: Iterable[tuple[Waiting, Clearing]]) -> bool:
        """Whether quotas will admit a job of this queue, once all who are asked have gone and those before it have got
        theirs, and whether or not those to whom places are promised have.
        """
        live, known = self.leader.memory.live, self.leader.memory.shares.quotas
        if not known.active:
            return True
        awaited = clearing.awaited.union(*(other.awaited for _, other in before))
        gone = {live[name].job_id: live[name].waiting for name in awaited}
        changes = [(one.project, one.amounts, -1) for one in gone.values()]
        changes += [(one.project, one.amounts, 1) for one, _ in before]
        promised = [(project, amounts, 1) for project, amounts in known.promised.values()]
        return all(
            known.supposing(supposed).admits(queue.project, queue.amounts)
            for supposed in ([changes + promised, changes] if promised else [changes])
        )

    def _nodes(self, queue: Queue) -> list[tuple[Node, Wanted]]:
        """Nodes that take work and could ever run a queue's jobs, by turns if there are many. For a gang, those that
        are reserved for the next of them come first, and then others that have room.
        """
        memory, members = self.leader.memory, queue.resources.nodes
        cluster = memory.cluster
        fitting = able(cluster, queue.resources, queue.applicant)
        if members == 1:
            return fitting.some(cluster, self._start, NODES)
        own = memory.claims.of(queue.head[1]) if queue.head is not None else []
        found = [one for claim in own for one in fitting.one(cluster, claim.node_id)]
        found += fitting.for_members(cluster, self._start, max(NODES, 2 * members))
        return list({node.node_id: (node, wanted) for node, wanted in found}.values())


def _change(holders: dict[str, Holder], names: Iterable[str], **values: Any) -> None:
    holders |= {name: holders[name]._replace(**values) for name in names}


def promise(clearing: Clearing, promised: dict[str, list[Wanted]]) -> None:
    """Add the places of one who comes before."""
    for place in clearing.places:
        promised.setdefault(place.node_id, []).append(place.wanted)


def holders_of(live: Mapping[str, Live], now: float) -> dict[str, Holder]:
    """Attempts under way, as the choice sees them, by what holds their places; `now` is monotonic."""
    found: dict[str, Holder] = {}
    for first in live.values():
        if not first.rank:
            found |= dict.fromkeys((one.holder for one in first.together), _holder(first, now))
    return found


def _holder(first: Live, now: float) -> Holder:
    return Holder(
        first.waiting.priority.rank,
        first.lost_seconds(now),
        any(one.must_end for one in first.together),
        restarts=first.number - 1,
        gang=tuple(one.holder for one in first.gang),
    )
