"""Placement: which waiting job goes to which node. Pure: it reads and changes the models in memory, and nothing else.

Queues are served in their order; a job goes to the node with the highest score. A queue whose head fits nowhere is left
for the rest of the call, since placing only ever takes capacity away, and costs nothing more until a node changes.
"""

from __future__ import annotations

from typing import NamedTuple

from broker.scheduler.backlog import Backlog, Waiting
from broker.scheduler.candidates import Candidates
from broker.scheduler.cluster import Cluster
from broker.scheduler.scoring import Parts, parts
from broker.scheduler.sleepers import Sleepers
from cyxwiz_tasks.resources import Resources

_RUNNERS_UP = 2
#: scores of shapes of which no job waits any more are kept for so many shapes
_SPARE_SHAPES = 64


class RunnerUp(NamedTuple):
    node_id: str
    name: str
    score: float


class Placement(NamedTuple):
    """One job on one node, booked in the cluster. Sizes are bytes; scores are 0..1."""

    waiting: Waiting
    node_id: str
    node_name: str
    incarnation: str
    #: NVML's indexes
    gpu_indexes: tuple[int, ...]
    #: on all its GPUs together; whole cards where they are the job's alone
    gpu_memory_bytes: int
    cpus: int
    ram_bytes: int
    score: float
    #: before weighing
    parts: Parts
    runners_up: tuple[RunnerUp, ...]

    @property
    def job_id(self) -> str:
        return self.waiting.job_id


class Placer:
    """Places the jobs of one backlog on one cluster, and keeps each shape's scores from call to call."""

    def __init__(self, cluster: Cluster, backlog: Backlog) -> None:
        self.cluster, self.backlog = cluster, backlog
        self._candidates: dict[str, Candidates] = {}
        self._sleepers = Sleepers(cluster)

    def place(self, limit: int) -> list[Placement]:
        """Take up to `limit` jobs out of the backlog and book them in the cluster, most urgent first."""
        cluster, backlog, order = self.cluster, self.backlog, self.backlog.order
        placed: list[Placement] = []
        self._sleepers.wake()
        at = 0
        while at < len(order) and len(placed) < limit and cluster.open_nodes:
            queue = order[at][3]
            candidates = self._candidates.get(queue.shape)
            if candidates is None:
                candidates = self._new_candidates(queue.resources)
            if candidates.asleep:
                at += 1
            elif (row := candidates.best()) is None:
                self._sleepers.add(candidates)
                at += 1
            else:
                # The queue's next head is younger: the queue moves back or stays, and `at` names who is next now.
                placed.append(self._book(backlog.pop(at), candidates, row))
                self._sleepers.booked(cluster.node_at(row))
        return placed

    def undo(self, placement: Placement) -> None:
        """The record refused a placement: free its place and let the job wait where it waited."""
        self.cluster.release(placement.job_id)
        self.backlog.add(placement.waiting)

    def _new_candidates(self, resources: Resources) -> Candidates:
        if len(self._candidates) > 2 * len(self.backlog.order) + _SPARE_SHAPES:
            wanted = {queue.shape for *_, queue in self.backlog.order}
            self._candidates = {shape: kept for shape, kept in self._candidates.items() if shape in wanted}
            self._sleepers.forget()
        found = self._candidates[resources.shape] = Candidates(self.cluster, resources)
        return found

    def _book(self, waiting: Waiting, candidates: Candidates, row: int) -> Placement:
        cluster, demand = self.cluster, candidates.demand
        node = cluster.node_at(row)
        positions = candidates.gpus_on(node)
        assert positions is not None
        taken = demand.gpu_memory_bytes * len(positions) or sum(node.gpu_memory[at] for at in positions)
        placement = Placement(
            waiting,
            node.node_id,
            node.name,
            node.incarnation,
            tuple(node.gpu_indexes[at] for at in positions),
            taken,
            demand.cpus,
            demand.ram_bytes,
            candidates.score(row),
            parts(node, demand, positions),
            tuple(self._runner_up(at, score) for at, score in candidates.next_best(row, _RUNNERS_UP)),
        )
        cluster.take_at(node, waiting.job_id, demand, positions)
        return placement

    def _runner_up(self, row: int, score: float) -> RunnerUp:
        node = self.cluster.node_at(row)
        return RunnerUp(node.node_id, node.name, score)
