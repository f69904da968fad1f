"""Placement: which waiting job goes to which node. Pure: it reads and changes the models in memory, and nothing else.

Queues are served in their order; a job goes to the node with the highest score. A queue whose head fits nowhere is left
for the rest of the call, since placing only ever takes capacity away, and costs nothing more until a node changes.
"""

from __future__ import annotations

from typing import NamedTuple

from broker.scheduler.backlog import Backlog, Waiting
from broker.scheduler.candidates import Candidates, Found
from broker.scheduler.cluster import Cluster
from broker.scheduler.scoring import Parts, parts
from broker.scheduler.shapes import Shapes

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
    #: the node is in quarantine, and no node without a cordon could ever run this
    last_resort: bool = False

    @property
    def job_id(self) -> str:
        return self.waiting.job_id


class Placer:
    """Places the jobs of one backlog on one cluster, and keeps each shape's scores from call to call."""

    def __init__(self, cluster: Cluster, backlog: Backlog) -> None:
        self.cluster, self.backlog = cluster, backlog
        self._shapes = Shapes(cluster)
        #: queues that were ever opened when all shapes slept last; None: not all of them sleep
        self._asleep_with: int | None = None

    def place(self, limit: int) -> list[Placement]:
        """Take up to `limit` jobs out of the backlog and book them in the cluster, most urgent first."""
        cluster, backlog, order = self.cluster, self.backlog, self.backlog.order
        placed: list[Placement] = []
        self._drop_spare_shapes()
        hopeful = self._shapes.hopeful()
        all_asleep = self._asleep_with == backlog.opened
        at = 0
        while len(placed) < limit and cluster.open_nodes:
            if at == len(order) or (all_asleep and not hopeful):
                # Everybody was asked. Who still has hope was not, since nobody of that shape waits.
                cluster.freed.clear()
                self._shapes.wake(hopeful)
                all_asleep = True
                break
            queue = order[at][3]
            candidates = self._shapes.get(queue.shape) or self._shapes.add(queue.resources)
            if candidates.asleep and not hopeful >> candidates.number & 1:
                at += 1
            elif best := candidates.best(1 + _RUNNERS_UP):
                # The queue's next head is younger: the queue moves back or stays, and `at` names who is next now.
                placed.append(self._book(backlog.pop(at), candidates, best))
                all_asleep &= candidates.asleep
                if hopeful:
                    hopeful = self._shapes.still_hopeful(hopeful, cluster.node_at(best[0][0]))
            else:
                self._shapes.put_to_sleep(candidates)
                hopeful &= ~(1 << candidates.number)
                at += 1
        self._asleep_with = backlog.opened if all_asleep else None
        return placed

    def undo(self, placement: Placement) -> None:
        """The record refused a placement: free its place and let the job wait where it waited."""
        self.cluster.release(placement.job_id)
        self.backlog.add(placement.waiting)

    def _drop_spare_shapes(self) -> None:
        if len(self._shapes) > 2 * len(self.backlog.order) + _SPARE_SHAPES:
            self._shapes.keep_only({queue.shape for *_, queue in self.backlog.order})

    def _book(self, waiting: Waiting, candidates: Candidates, best: list[Found]) -> Placement:
        cluster, demand = self.cluster, candidates.demand
        (row, score), *runners_up = best
        node = cluster.node_at(row)
        positions = candidates.gpus_on(node)
        assert positions is not None
        taken = demand.gpu_memory_bytes * len(positions) or sum([node.gpu_memory[at] for at in positions])
        placement = Placement(
            waiting,
            node.node_id,
            node.name,
            node.incarnation,
            tuple([node.gpu_indexes[at] for at in positions]),
            taken,
            demand.cpus,
            demand.ram_bytes,
            score,
            parts(node, demand, positions),
            tuple([self._runner_up(row, score) for row, score in runners_up]),
            candidates.last_resort,
        )
        cluster.take_at(node, waiting.job_id, demand, positions)
        return placement

    def _runner_up(self, row: int, score: float) -> RunnerUp:
        node = self.cluster.node_at(row)
        return RunnerUp(node.node_id, node.name, score)
