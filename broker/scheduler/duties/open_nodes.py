"""Nodes with hours of their own open and close, by this machine's clock. What runs when a node closes, runs on."""

from __future__ import annotations

import logging
import time
from typing import ClassVar

from broker.scheduler.duties.duty import Duty
from broker.scheduler.log_lines import line
from broker.scheduler.opening import Opening

log = logging.getLogger(__name__)


class OpenNodes(Duty):
    every_seconds: ClassVar[float] = 1.0

    def run_once(self) -> dict[str, int]:
        cluster, at = self.leader.memory.cluster, Opening(time.time())
        moves = {
            node.node_id: opening
            for node in cluster
            if node.capability.hours is not None and (opening := at.of(node.capability)) != node.opens_at
        }
        if not moves:
            return {}
        with self.leader.turn():
            for node_id, opening in moves.items():
                cluster.set_opening(node_id, opening)
                word = "node_open" if opening is None else "node_closed"
                log.info(line(word, node=node_id, name=cluster.node(node_id).name))
        return {"moved": len(moves)}
