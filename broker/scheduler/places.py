"""Whether a job would fit on a node, in thought: on a copy of the node, with some of what runs there taken away."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from broker.scheduler.admission import Admission
from broker.scheduler.cluster import Cluster
from broker.scheduler.columns import Rows
from broker.scheduler.demand import Demand, demand_of
from broker.scheduler.node import Holding, Node
from cyxwiz_tasks.conditions import Applicant
from cyxwiz_tasks.resources import Resources
from db.models import NodeState


class Wanted(NamedTuple):
    """What a job needs of one node: `admitted` are the positions of the GPUs that it may use there."""

    demand: Demand
    admitted: Sequence[int]


class Able(NamedTuple):
    """The nodes that take work and could run a job if they were empty."""

    demand: Demand
    rows: Rows
    #: GPUs that it may use, in the order of `rows`
    admitted: NDArray[np.bool_]

    def some(self, cluster: Cluster, start: int, count: int) -> list[tuple[Node, Wanted]]:
        """Up to `count` of them from a moving start, so that whoever looks again and again looks at all."""
        found = range(len(self.rows))
        if len(found) > count:
            found = range(at := start % len(self.rows), min(at + count, len(self.rows)))
        return [self._wanted(cluster, at) for at in found]

    def for_members(self, cluster: Cluster, start: int, count: int) -> list[tuple[Node, Wanted]]:
        """For a gang: before these, as many as it has members that have room now, as far as counting tells."""
        found, roomy = self.some(cluster, start, count), has_room(cluster, self.demand, self.rows).nonzero()[0]
        known = {node.node_id for node, _ in found}
        more = [self._wanted(cluster, int(at)) for at in roomy[: self.demand.nodes]]
        return [one for one in more if one[0].node_id not in known] + found

    def one(self, cluster: Cluster, node_id: str) -> list[tuple[Node, Wanted]]:
        """This node, if it is among them."""
        row = cluster.node(node_id).row if node_id in cluster else -1
        return [self._wanted(cluster, int(at)) for at in (self.rows == row).nonzero()[0]]

    def _wanted(self, cluster: Cluster, at: int) -> tuple[Node, Wanted]:
        gpus = tuple(self.admitted[at].nonzero()[0].tolist())
        return cluster.node_at(int(self.rows[at])), Wanted(self.demand, gpus)


def takes_work(node: Node) -> bool:
    """Whether it would if it had room."""
    return node.state == NodeState.UP and node.cordon is None and node.opens_at is None


def taking_work(cluster: Cluster) -> Rows:
    return np.array([node.row for node in cluster if takes_work(node)], np.int32)


def has_room(cluster: Cluster, demand: Demand, rows: Rows) -> NDArray[np.bool_]:
    """Of these rows, where a slot and enough of everything is free now, as far as counting tells."""
    counted = np.array(demand.counted).reshape(-1, 1)
    room: NDArray[np.bool_] = np.all(cluster.columns.free[:, rows] >= counted, axis=0)
    return room


def able(cluster: Cluster, resources: Resources, applicant: Applicant, rows: Rows | None = None) -> Able:
    """The nodes for a job of this applicant; `rows` are `taking_work`, for whoever asks for several."""
    rows = taking_work(cluster) if rows is None else rows
    admission = Admission(resources, cluster.refusing(resources, applicant))
    admitted = admission.gpus(cluster.columns, rows)
    fitting = admission.nodes(cluster, rows, admitted).nonzero()[0]
    return Able(demand_of(resources), rows[fitting], admitted[fitting])


def without(node: Node, job_ids: Iterable[str], kept_for: Iterable[str] = ()) -> Node:
    """The node as it were without these jobs, and without what is kept there for those others."""
    room = copy(node)
    room.holdings, room.gpu_free, room.kept = dict(node.holdings), list(node.gpu_free), dict(node.kept)
    for job_id in job_ids:
        room.release(job_id)
    for job_id in kept_for:
        room.give_back(job_id)
    return room


def fits(room: Node, wanted: Wanted) -> bool:
    return positions(room, wanted) is not None


def take(room: Node, name: str, wanted: Wanted) -> bool:
    """Book a job in thought. False: it does not fit."""
    found = positions(room, wanted)
    if found is not None:
        room.take(name, Holding(wanted.demand, found))
    return found is not None


def positions(room: Node, wanted: Wanted) -> tuple[int, ...] | None:
    """The GPUs that the job would get; None: it does not fit. Says nothing of whether the node takes work."""
    demand = wanted.demand
    if room.slots_free < 1 or room.cpus_free < demand.cpus or room.ram_free_bytes < demand.ram_bytes:
        return None
    return room.best_gpus(demand, list(wanted.admitted)) if demand.gpus else ()


def usable_gpus(room: Node, wanted: Wanted) -> list[int]:
    """Of the GPUs that the job may use, those with room for it."""
    demand, free = wanted.demand, room.gpu_free
    if demand.shared:
        return [at for at in wanted.admitted if free[at] >= demand.gpu_memory_bytes]
    return [at for at in wanted.admitted if free[at] == room.gpu_memory[at]]
