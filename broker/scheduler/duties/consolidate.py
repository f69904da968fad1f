"""Smaller jobs that write checkpoints move to other nodes, so that a bigger one gets the place that it waits for."""

from __future__ import annotations

import time
from itertools import islice
from typing import ClassVar

from broker.scheduler import preempting
from broker.scheduler.backlog import Waiting
from broker.scheduler.consolidation import Mover, consolidate
from broker.scheduler.duties.preempt import NODES, Preempt
from broker.scheduler.preemption import Clearing

#: reservations at which one run looks: what it costs has a limit
_JOBS = 8


class Consolidate(Preempt):
    every_seconds: ClassVar[float] = 5.0

    def run_once(self) -> dict[str, int]:
        self._start += NODES
        limit = self.leader.settings.consolidate_limit
        # Whose job gave its place back often is looked up only where somebody might have to go.
        if not self.leader.placed_all or limit == 0 or self._move(set()) is None:
            return {}
        with self.leader.turn() as turn:
            move = self._move(self._spared(turn, limit))
            if move is None:
                return {}
            waiting, clearing = move
            reason = f"job {waiting.job_id} needs more of this node at once, and others have room for this one"
            preempting.clear(turn, waiting, clearing, reason)
        return {"jobs": 1, "moved": len(clearing.victims)}

    def _move(self, spared: set[str]) -> tuple[Waiting, Clearing] | None:
        """The first of those with a reservation for whom others can move, but not these. One at a time: a second place
        could count on the same room elsewhere.
        """
        memory, now = self.leader.memory, time.monotonic()
        claims = [claim for claim in memory.claims if not claim.clearing and claim.waiting.resources.nodes == 1]
        if not claims:
            return None
        movers = self._movers(spared, now)
        stopping = {name for name, live in memory.live.items() if live.must_end}
        for claim in islice(claims, _JOBS):
            waiting, queue = claim.waiting, memory.backlog.queue_of(claim.job_id)
            if queue is None or queue.is_held_back:
                continue
            nodes = self._nodes(queue)
            taken = {other.node_id for other in memory.claims if other.job_id != waiting.job_id}
            clearing = consolidate(claim, nodes, memory.cluster, movers, stopping, taken, now)
            if clearing is not None:
                return waiting, clearing
        return None

    def _movers(self, spared: set[str], now: float) -> dict[str, Mover]:
        memory, found = self.leader.memory, dict[str, Mover]()
        for name, live in memory.live.items():
            if live.checkpointed_at is None or live.gang or live.must_end or live.job_id in spared:
                continue
            node = memory.cluster.node_of(name)
            if node is not None and node.capability.checkpoint_place is not None:
                found[name] = Mover(live.waiting, live.lost_seconds(now), node.capability.checkpoint_place)
        return found
