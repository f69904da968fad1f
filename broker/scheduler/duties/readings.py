"""What nodes measured goes from Redis into the record, with the time that they have been up."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, ClassVar

from broker.scheduler.duties.duty import Duty
from cyxwiz_tasks.protocol.names import telemetry_key
from db import nodes
from db.known_nodes import uptimes
from db.models import NodeState

if TYPE_CHECKING:
    from broker.scheduler.leader import Leader

_ROUND_SECONDS = 5.0
#: how many nodes one run looks at, by turns: 10,000 rows at once would hold up every job that arrives meanwhile
_NODES = 250
#: of a share of time; a smaller change moves no node's place, and would have all shapes rate the node again
_NOTICEABLE = 0.001


class Readings(Duty):
    every_seconds: ClassVar[float] = 0.25

    def __init__(self, leader: Leader) -> None:
        super().__init__(leader)
        #: nodes that this round has still to look at, and when (monotonic) the next one begins
        self._round: list[str] = []
        self._next_round = 0.0

    def run_once(self) -> dict[str, int]:
        cluster = self.leader.memory.cluster
        if not self._round and self._next_round <= time.monotonic():
            self._next_round = time.monotonic() + _ROUND_SECONDS
            self._round = [node.node_id for node in cluster]
        asked, self._round = self._round[:_NODES], self._round[_NODES:]
        beating = [id for id in asked if id in cluster and cluster.node(id).state == NodeState.UP]
        if not beating:
            return {}
        texts: Any = self.leader.redis.mget([telemetry_key(node_id) for node_id in beating])
        with self.leader.turn() as turn:
            nodes.seen(turn.tx, {node_id: _reading(text) for node_id, text in zip(beating, texts, strict=True)})
            for node_id, uptime in uptimes(turn.tx, beating).items():
                if node_id in cluster and abs(uptime - cluster.node(node_id).uptime) >= _NOTICEABLE:
                    cluster.set_standing(node_id, cluster.node(node_id).reputation, uptime)
        return {}


def _reading(text: bytes | None) -> dict[str, Any] | None:
    try:
        reading = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    return reading if isinstance(reading, dict) else None
