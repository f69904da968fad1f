"""What nodes measured goes from Redis into the record, with the time that they have been up."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from broker.scheduler.duties.duty import Duty
from cyxwiz_tasks.protocol import telemetry_key
from db import nodes
from db.known_nodes import uptimes
from db.models import NodeState


class Readings(Duty):
    every_seconds: ClassVar[float] = 5.0

    def run_once(self) -> dict[str, int]:
        cluster = self.leader.memory.cluster
        beating = [node.node_id for node in cluster if node.state == NodeState.UP]
        if not beating:
            return {}
        texts: Any = self.leader.redis.mget([telemetry_key(node_id) for node_id in beating])
        with self.leader.turn() as turn:
            nodes.seen(turn.tx, {node_id: _reading(text) for node_id, text in zip(beating, texts, strict=True)})
            for node_id, uptime in uptimes(turn.tx).items():
                if node_id in cluster:
                    cluster.set_standing(node_id, cluster.node(node_id).reputation, uptime)
        return {}


def _reading(text: bytes | None) -> dict[str, Any] | None:
    try:
        reading = json.loads(text) if text else None
    except ValueError:
        return None
    return reading if isinstance(reading, dict) else None
