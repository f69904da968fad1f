"""Nodes that drain: whatever still runs there when the time that it was left is over gives its place back."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar

from broker.scheduler import draining
from broker.scheduler.duties.duty import Duty
from broker.scheduler.log_lines import line
from db import nodes
from db.models import Cordon

if TYPE_CHECKING:
    from broker.scheduler.leader import Leader

log = logging.getLogger(__name__)


class Drains(Duty):
    every_seconds: ClassVar[float] = 0.5

    def __init__(self, leader: Leader) -> None:
        super().__init__(leader)
        self._said_drained: set[str] = set()

    def run_once(self) -> dict[str, int]:
        cluster, live = self.leader.memory.cluster, self.leader.memory.live
        draining_nodes = {node.node_id: node for node in cluster if node.cordon == Cordon.DRAINING}
        busy = {node_id for node_id, node in draining_nodes.items() if node.holdings}
        self._say_drained(set(draining_nodes) - busy)
        if not any(one.node_id in busy and one.stop is None and one.ended is None for one in live.values()):
            return {}
        with self.leader.turn() as turn:
            asked = draining.empty(turn, busy.intersection(nodes.drains_due(turn.tx)))
        return {"asked": asked}

    def _say_drained(self, empty: set[str]) -> None:
        for node_id in empty - self._said_drained:
            log.info(line("node_drained", node=node_id, name=self.leader.memory.cluster.node(node_id).name))
        self._said_drained = empty
