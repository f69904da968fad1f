"""The record forgets jobs that ended `retention_days` ago, and nodes that have been gone for as long.

It waits no more for jobs that an array lacks after a day. Progress and logs in Redis expire by themselves.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from broker.scheduler.duties.duty import Duty
from db import dependencies, retention

if TYPE_CHECKING:
    from broker.scheduler.leader import Leader

_DAY_SECONDS = 86_400.0
#: a job may have thousands of events and metrics
_BATCH = 50
#: of one run, so that jobs on their way do not wait
_BUDGET_SECONDS = 0.05
#: after a look that found nothing
_REST_SECONDS = 60.0
_NODE_EVENTS_SECONDS, _NODE_EVENTS_BATCH = 3600.0, 1000
#: from one look for a node that is long gone to the next, after one that found it, or none: whether attempts of a node
#: are kept is told by reading all attempts, and those of a job that still waits may be kept for as long as it does
_NODE_SECONDS, _NODE_REST_SECONDS = 60.0, 3600.0
#: of the loop's time, at most, where many nodes are long gone and many attempts are kept
_NODE_SHARE = 0.005


class Prune(Duty):
    every_seconds: ClassVar[float] = 1.0

    def __init__(self, leader: Leader) -> None:
        super().__init__(leader)
        self._rests_until = 0.0
        self._node_events_at = self._node_at = 0.0

    def run_once(self) -> dict[str, int]:
        now = time.monotonic()
        if now < self._rests_until:
            return {}
        age_seconds = self.leader.settings.retention_days * _DAY_SECONDS
        jobs = events = nodes = 0
        while time.monotonic() - now < _BUDGET_SECONDS:
            with self.leader.turn() as turn:
                pruned = retention.prune(turn.tx, age_seconds, _BATCH)
            jobs += pruned
            if pruned < _BATCH:
                self._rests_until = time.monotonic() + _REST_SECONDS
                break
        if now >= self._node_events_at:
            with self.leader.turn() as turn:
                # The end of the turn looks at who waits for them; nothing else would bring it to do so again.
                turn.over += dependencies.old_arrays(turn.tx)
                retention.prune_arrays(turn.tx, age_seconds)
                events = retention.prune_node_events(turn.tx, age_seconds, _NODE_EVENTS_BATCH)
            self._node_events_at = now + (_NODE_EVENTS_SECONDS if events < _NODE_EVENTS_BATCH else 0.0)
        if now >= self._node_at:
            began = time.monotonic()
            # Also if it fails, for it took longer than a statement may: the next try would take as long.
            self._node_at = now + _NODE_REST_SECONDS
            with self.leader.turn() as turn:
                nodes = retention.prune_node(turn.tx, age_seconds)
            if nodes:
                self._node_at = now + max(_NODE_SECONDS, (time.monotonic() - began) / _NODE_SHARE)
        return {"jobs": jobs, "node_events": events, "nodes": nodes}
