"""Smaller attempts move together, by their checkpoints, so that a big job that is waiting gets all of its place now.

Once a cluster is well used, what is free lies scattered: two GPUs here and one there, and a job that needs eight waits
until all of one node has ended, while nobody fills the gaps. An attempt that writes checkpoints can go on elsewhere at
little cost. So where those that stand in a big job's way fit into gaps on other nodes, they are asked to leave, start
again there from their checkpoints, and the big job has its place at once. That GPU jobs can be moved like this, and
what it gains: Xiao et al., "Gandiva: introspective cluster scheduling for deep learning" (OSDI 2018).

Nobody moves for a job that is less urgent or not bigger, nor where a node with room for it might not find its
checkpoints, and what is lost must be little beside what is gained. A place elsewhere is found in thought and not kept:
a job that comes meanwhile may take it, and who was moved then waits.

Pure: it reads the models in memory and changes nothing. Moments are of any one clock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from broker.scheduler.backlog import Waiting
from broker.scheduler.claims import Claim
from broker.scheduler.cluster import Cluster
from broker.scheduler.columns import Rows
from broker.scheduler.demand import demand_of
from broker.scheduler.node import Node
from broker.scheduler.places import Wanted, able, has_room, take, taking_work, without
from broker.scheduler.preemption import Clearing, Holder, choose

#: starting again costs an attempt about so much
RESTART_SECONDS = 30.0
#: of what is gained, at most this share may be lost
_MOST_LOST = 0.1
#: where nobody knows when a job could start otherwise, it is taken for so late
_UNKNOWN_SECONDS = 3600.0
#: what one look costs has a limit: places for which it is tried whether all find room elsewhere, and nodes for each
_PLACES, _NODES = 8, 128
#: as ranks: who may move, for whom that is, and who may not
_MAY_MOVE, _WAITS, _STAYS = 0, 1, 2


class Mover(NamedTuple):
    """An attempt under way that writes checkpoints."""

    waiting: Waiting
    #: of work since its last checkpoint
    lost_seconds: float
    #: the `Capability.checkpoint_place` of its node
    checkpoint_place: str


def consolidate(
    claim: Claim,
    nodes: Iterable[tuple[Node, Wanted]],
    cluster: Cluster,
    movers: Mapping[str, Mover],
    stopping: Collection[str],
    taken: Collection[str],
    now: float,
) -> Clearing | None:
    """The place to clear for a job that has one reserved; None: it would cost too much, or there is none.

    `nodes` are those that could ever run it; `movers` are, by what holds their places, those that may be asked at all,
    and `stopping` those that end already. Nobody moves from or to nodes that are `taken`: places are kept there for
    others.
    """
    waiting = claim.waiting
    holders = _holders(waiting, movers, stopping)
    found: list[tuple[float, int, Clearing]] = []
    for node, wanted in nodes:
        clearing = choose([(node, wanted)], _WAITS, holders, {}) if node.node_id not in taken else None
        if clearing is not None and clearing.victims and clearing.awaited == frozenset(clearing.victims):
            found.append((_loss(clearing.victims, movers), node.row, clearing))
    # What runs on goes on elsewhere, so all that the big job takes is gained.
    seconds = _UNKNOWN_SECONDS if claim.starts_at is None else max(0.0, claim.starts_at - now)
    most = _MOST_LOST * seconds * waiting.resources.gpus
    affordable = sorted((one for one in found if one[0] <= most), key=lambda one: one[:2])[:_PLACES]
    free = [row for row in taking_work(cluster) if cluster.node_at(row).node_id not in taken] if affordable else []
    for _, own, clearing in affordable:
        rows, moving = np.array([row for row in free if row != own], np.int32), [movers[id] for id in clearing.victims]
        # What was kept for the job on another node is free then, and whoever moves may get that.
        finds = clearing.node_id == claim.node_id or _is_found_on(cluster, claim.node_id, moving)
        if finds and _fit(cluster, moving, rows):
            return clearing
    return None


def _holders(waiting: Waiting, movers: Mapping[str, Mover], stopping: Collection[str]) -> Mapping[str, Holder]:
    """For `preemption.choose`: those who may move for this job, and those who are about to end."""
    found = {name: Holder(_STAYS, 0.0, stopping=True) for name in stopping}
    for name, mover in movers.items():
        other = mover.waiting
        if other.priority.rank <= waiting.priority.rank and other.resources.gpus < waiting.resources.gpus:
            found[name] = Holder(_MAY_MOVE, _loss([name], movers), stopping=False)
    return found


def _loss(names: Iterable[str], movers: Mapping[str, Mover]) -> float:
    """GPU seconds; of a job without any, seconds."""
    return sum(
        max(1, movers[name].waiting.resources.gpus) * (movers[name].lost_seconds + RESTART_SECONDS) for name in names
    )


def _is_found_on(cluster: Cluster, node_id: str, movers: Iterable[Mover]) -> bool:
    """Whether the checkpoints of all of these would be found on this node."""
    place = cluster.node(node_id).capability.checkpoint_place if node_id in cluster else None
    return all(mover.checkpoint_place == place for mover in movers)


def _fit(cluster: Cluster, movers: list[Mover], rows: Rows) -> bool:
    """Whether all of these find room on these nodes at the same time; the biggest choose first."""
    rooms: dict[str, Node] = {}
    for number, mover in enumerate(sorted(movers, key=lambda mover: -mover.waiting.resources.gpus)):
        resources = mover.waiting.resources
        roomy = rows[has_room(cluster, demand_of(resources), rows)]
        options = able(cluster, resources, mover.waiting.applicant, roomy).some(cluster, 0, _NODES)
        if any(node.capability.checkpoint_place != mover.checkpoint_place for node, _ in options):
            return False
        fullest = sorted(options, key=lambda option: (option[0].idle_gpus, option[0].row))
        for node, wanted in fullest:
            if node.node_id not in rooms:
                rooms[node.node_id] = without(node, ())
            if take(rooms[node.node_id], f"mover {number}", wanted):
                break
        else:
            return False
    return True
