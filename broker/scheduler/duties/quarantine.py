"""Quarantines that are over, by PostgreSQL's clock: the node gets work again, on probation."""

from __future__ import annotations

import logging
from typing import ClassVar

from broker.scheduler.duties.duty import Duty
from broker.scheduler.log_lines import line
from db import nodes
from db.models import Cordon

log = logging.getLogger(__name__)


class Quarantine(Duty):
    every_seconds: ClassVar[float] = 0.5

    def run_once(self) -> dict[str, int]:
        cluster = self.leader.memory.cluster
        if not any(node.cordon == Cordon.QUARANTINED for node in cluster):
            return {}
        with self.leader.turn() as turn:
            over = nodes.quarantines_over(turn.tx)
            for node_id in over:
                nodes.uncordon(turn.tx, turn.epoch, node_id, forgive=False)
                if node_id in cluster:
                    cluster.node(node_id).faults = 0
                    cluster.set_cordon(node_id, None)
                log.info(line("node_on_probation", node=node_id))
        return {"over": len(over)}
