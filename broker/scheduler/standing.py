"""A node's reputation: 0 to 1, out of how its attempts ended.

Each attempt that a node carried to its job's end moves it 5 % of the way to 1; each one that the node lost or spoiled
moves it 20 % of the way to 0. So one loss weighs about as much as five good attempts, and old history fades. Ends that
the job itself is to blame for (its exception, its memory, its time) and cancellations say nothing of the node.
"""

from __future__ import annotations

from broker.scheduler.turn import Turn
from db import nodes

_GAIN, _LOSS = 0.05, 0.2
#: smaller moves are not worth a statement
_NOTICEABLE = 0.001


def carried_to_its_end(turn: Turn, node_id: str) -> None:
    _move(turn, node_id, towards=1.0, share=_GAIN)


def failed_a_job(turn: Turn, node_id: str) -> None:
    _move(turn, node_id, towards=0.0, share=_LOSS)


def _move(turn: Turn, node_id: str, towards: float, share: float) -> None:
    cluster = turn.memory.cluster
    if node_id not in cluster:
        return
    node = cluster.node(node_id)
    change = (towards - node.reputation) * share
    if abs(change) >= _NOTICEABLE:
        cluster.set_standing(node_id, node.reputation + change, node.uptime)
        nodes.rate(turn.tx, {node_id: node.reputation})
