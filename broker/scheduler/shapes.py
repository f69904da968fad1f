"""All shapes that wait, or waited lately, and which of those that fit nowhere should be asked about freed nodes.

In a full cluster most shapes sleep, and every job that ends frees one node. Asking each of them about that node would
cost as many calls as there are shapes. Here a set of shapes is an integer with one bit a shape, and for each resource
it is known who needs at most so much of it: what is free on a node gives four such sets, and whoever is in all of them
may fit there. It only counts, so it may name a shape for nothing, and it never leaves one out that fits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from broker.scheduler.acceptance import Refused
from broker.scheduler.candidates import Candidates, LeaningCandidates
from broker.scheduler.cluster import Cluster
from broker.scheduler.demand import demand_of
from broker.scheduler.gang_candidates import GangCandidates
from broker.scheduler.node import Node
from broker.scheduler.scoring import leaning
from cyxwiz_tasks.resources import Resources

#: equal for jobs that fit exactly the same nodes: what they need, and the nodes' own conditions that refuse them
Shape = tuple[str, Refused]


class Shapes:
    """Sets of shapes are integers: bit `number` stands for the shape with that number."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._members: list[Candidates] = []
        self._by_shape: dict[Shape, Candidates] = {}
        self._asleep = 0
        self._needs: tuple[_Needs, ...] | None = None

    def __len__(self) -> int:
        return len(self._members)

    @property
    def awake(self) -> int:
        """Those that may fit anywhere, and all that are not known yet."""
        return ~self._asleep

    def of(self, resources: Resources, refused: Refused) -> Candidates:
        """A shape's scores; computed over all nodes if it is not known yet."""
        return self._by_shape.get((resources.shape, refused)) or self._add(resources, refused)

    def _add(self, resources: Resources, refused: Refused) -> Candidates:
        candidates = candidates_of(self._cluster, resources, refused, number=len(self._members))
        self._members.append(candidates)
        self._by_shape[resources.shape, refused] = candidates
        self._needs = None
        return candidates

    def keep_only(self, shapes: set[Shape]) -> None:
        self._by_shape = {shape: kept for shape, kept in self._by_shape.items() if shape in shapes}
        self._members = [*self._by_shape.values()]
        self._asleep, self._needs = 0, None
        for number, candidates in enumerate(self._members):
            candidates.number = number
            self._asleep |= candidates.asleep << number

    def put_to_sleep(self, candidates: Candidates) -> None:
        """It was found to fit nowhere."""
        self._asleep |= 1 << candidates.number

    def woke(self, candidates: Candidates) -> None:
        """It was found to fit, and reads the cluster's log again."""
        self._asleep &= ~(1 << candidates.number)

    def wake(self, shapes: int) -> None:
        """They may fit anywhere by now."""
        self._asleep &= ~shapes
        while shapes:
            number = shapes.bit_length() - 1
            self._members[number].asleep = False
            shapes ^= 1 << number

    def hopeful(self) -> int:
        """Those that sleep and may fit on a freed node."""
        if not self._asleep:
            # Everybody reads the cluster's log of changes.
            self._cluster.freed.clear()
            return 0
        shapes = 0
        for row in self._cluster.freed:
            shapes |= self._able(self._cluster.node_at(row))
        return shapes & self._asleep

    def still_hopeful(self, hopeful: int, booked: Node) -> int:
        """Those of `hopeful` that remain after one more job went to a node."""
        freed, row = self._cluster.freed, booked.row
        if row in freed:
            able = self._able(booked) & hopeful
            if not able:
                freed.remove(row)
            elif len(freed) == 1:
                return able
        return hopeful if freed else 0

    def _able(self, node: Node) -> int:
        if self._needs is None:
            counted = [candidates.demand.counted for candidates in self._members]
            self._needs = tuple(_Needs(needs) for needs in zip(*counted, strict=True))
        gpus, cpus, ram_bytes, gpu_bytes = self._needs
        return (
            gpus.at_most(node.idle_gpus)
            & cpus.at_most(node.cpus_free)
            & ram_bytes.at_most(node.ram_free_bytes)
            & gpu_bytes.at_most(node.most_gpu_free)
        )


def candidates_of(cluster: Cluster, resources: Resources, refused: Refused, number: int) -> Candidates:
    """`refused`: the nodes' own conditions that do not hold for the shape; `number`: its own among `Shapes`."""
    leans = leaning(resources.placement or cluster.placement, cluster.weights, demand_of(resources))
    if resources.nodes > 1:
        return GangCandidates(cluster, resources, refused, number, leans)
    if leans.slope == 0:
        return Candidates(cluster, resources, refused, number)
    return LeaningCandidates(cluster, resources, refused, number, leans)


class _Needs:
    """How much each shape needs of one resource."""

    def __init__(self, needs: Iterable[int]) -> None:
        self._levels: list[int] = []
        #: one more than levels: before the first level is nobody
        self._shapes = [0]
        for need, number in sorted((need, number) for number, need in enumerate(needs)):
            if not self._levels or need > self._levels[-1]:
                self._levels.append(need)
                self._shapes.append(self._shapes[-1])
            self._shapes[-1] |= 1 << number

    def at_most(self, amount: int) -> int:
        """The shapes that need no more than this."""
        return self._shapes[bisect_right(self._levels, amount)]
