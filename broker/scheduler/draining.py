"""A node that a person empties: no new work from now on, and what runs gives its place back, now or by a deadline.

The record keeps the drain, over restarts of the node and changes of leaders; `duties.drains` sees that it is done.
"""

from __future__ import annotations

import logging
from typing import Any

from broker.scheduler import stopping
from broker.scheduler.log_lines import line
from broker.scheduler.turn import Turn
from cyxwiz_tasks.errors import InvalidSettings, NotFound
from cyxwiz_tasks.protocol.commands import Drain, Undrain
from db import nodes
from db.models import Cordon, NodeState

log = logging.getLogger(__name__)


def drain(turn: Turn, command: Drain) -> dict[str, Any]:
    """Begin a drain, or give one another deadline. Returns the node as `cyxwiz nodes` shows it.

    Raises NotFound, and InvalidSettings where several nodes bear the name.
    """
    node_id = _find(turn, command.node)
    nodes.cordon(turn.tx, turn.epoch, node_id, Cordon.DRAINING, command.deadline_seconds, command.reason)
    if node_id in turn.memory.cluster:
        turn.memory.cluster.set_cordon(node_id, Cordon.DRAINING)
        if command.deadline_seconds is not None and command.deadline_seconds <= 0:
            empty(turn, {node_id})
    log.info(line("node_draining", node=node_id, seconds=command.deadline_seconds))
    return _shown(turn, node_id)


def undrain(turn: Turn, command: Undrain) -> dict[str, Any]:
    """Let a node take work again. Raises what `drain` raises."""
    node_id = _find(turn, command.node)
    before = nodes.uncordon(turn.tx, turn.epoch, node_id)
    if node_id in turn.memory.cluster:
        turn.memory.cluster.set_cordon(node_id, None)
        node = turn.memory.cluster.node(node_id)
        node.faults = node.quarantines = 0
    log.info(line("node_undrained", node=node_id, before=before))
    return _shown(turn, node_id)


def empty(turn: Turn, node_ids: set[str]) -> int:
    """Ask everything on these nodes to give its place back; how many attempts were asked that had not been."""
    asked = 0
    for live in turn.memory.live.values():
        if live.node_id in node_ids and live.stop is None and live.ended is None:
            name = turn.memory.cluster.node(live.node_id).name
            stopping.preempt(turn, live, f"node {name} is drained")
            asked += 1
    return asked


def _find(turn: Turn, name: str) -> str:
    """The id of the node of this name or id; a name belongs to a node that is there, where another one has gone."""
    found = nodes.find(turn.tx, name=name)
    there = [row for row in found if row["state"] in (NodeState.UP, NodeState.SUSPECT)] or found
    if not there:
        raise NotFound(f"there is no node {name}: `cyxwiz nodes` lists those there are")
    if len(there) > 1:
        ids = ", ".join(row["id"] for row in there[:3])
        raise InvalidSettings(f"NODE: {len(there)} nodes are called {name}: write the id of one, such as {ids}")
    return str(there[0]["id"])


def _shown(turn: Turn, node_id: str) -> dict[str, Any]:
    return nodes.find(turn.tx, name=node_id)[0]
