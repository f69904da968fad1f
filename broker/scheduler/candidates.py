"""For one shape: the score of every node, minus infinity where a job of this shape does not fit now.

Computed over all nodes once, then kept up by reading the cluster's logs: a few changed rows one by one in plain Python,
many of them in one vectorised pass. Both must give equal numbers, and a property test compares them.

Where a job takes whole GPUs and a node's GPUs are all alike, how tightly it fits does not depend on what runs there:
the score is the node's standing plus a constant, and whether it fits is a matter of counting idle GPUs. Only shared
GPUs and nodes with different GPUs need a look at each GPU.

Nodes in quarantine count only for a shape that no node without a cordon could ever run, busy or not: `last_resort`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from broker.scheduler.acceptance import Refused
from broker.scheduler.admission import Admission
from broker.scheduler.cluster import Cluster
from broker.scheduler.columns import Rows
from broker.scheduler.demand import demand_of
from broker.scheduler.node import Node
from broker.scheduler.preferred import Preferred
from broker.scheduler.scoring import UNTRIED, Leaning, constant_fit, fit, gpu_fit
from cyxwiz_tasks.resources import Resources

#: Up to so many changed rows, plain Python is faster than the dozen NumPy calls of a vectorised pass. Alone and warm,
#: 20 would be right; between placements, where a pass finds its code and data cold, it costs 37 us and more.
SCALAR_ROWS = 64
_NOWHERE = float("-inf")

#: row and score
Found = tuple[int, float]


class Candidates:
    def __init__(self, cluster: Cluster, resources: Resources, refused: Refused, number: int) -> None:
        self.demand = demand_of(resources)
        #: among `Shapes`
        self.number = number
        #: fits on no node but perhaps on those that the cluster has noted as `freed`; then it reads no log
        self.asleep = False
        #: only nodes with a cordon could ever run it: those in quarantine take it, one job at a time
        self.last_resort = False
        self._cluster = cluster
        self._admission = Admission(resources, refused)
        self._preferred = Preferred(resources)
        self._prefers = bool(self._preferred)
        #: whether anything is added to a node's score besides its standing and the fit
        self._is_big = self.demand.gpus * self.demand.nodes > 1
        self._adds = self._prefers or self._is_big
        self._counted = np.array(self.demand.counted).reshape(4, 1)
        self._rebuild()

    def best(self, count: int) -> list[Found]:
        """The `count` nodes with the highest scores, the lowest row first among equals. Empty: it fits nowhere now."""
        cluster = self._cluster
        if self._described != cluster.described.end:
            self._judge_described()
        if self.asleep:
            if len(cluster.freed) <= SCALAR_ROWS:
                return self._best_of_freed(count)
            self.asleep = False
            self._rate_all(list(cluster.freed))
        elif self._changed != cluster.changed.end:
            self._catch_up()
        found = _highest(self._live, count)
        self.asleep = not found
        return found

    def gpus_on(self, node: Node) -> tuple[int, ...] | None:
        """On a node that could run this: positions of the GPUs that a job would get now; None: too few are free."""
        if not self.demand.gpus:
            return ()
        # GPUs that are alike are admitted all or none.
        admitted = self._admitted[node.row].nonzero()[0].tolist() if node.mixed else range(len(node.gpu_memory))
        return node.best_gpus(self.demand, admitted)

    def could_run(self, node: Node) -> bool:
        """Whether a job of this shape fits there when the node is empty."""
        if self._described != self._cluster.described.end:
            self._judge_described()
        return bool(self._bonus.item(node.row) != _NOWHERE)

    def score_on(self, node: Node) -> float | None:
        """The score of one node; None: a job of this shape does not fit there now."""
        score = self._score_at(node.row) if self.could_run(node) else _NOWHERE
        return score if score != _NOWHERE else None

    def preferred_at(self, node: Node) -> float | None:
        """The share of what the job prefers that this node has, 0..1; None: it prefers nothing."""
        return self._shares.item(node.row) if self._prefers else None

    def _rebuild(self) -> None:
        cluster, columns = self._cluster, self._cluster.columns
        self._size_version = cluster.size_version
        self._admitted = np.zeros(columns.gpu_kind.shape, bool)
        #: how much of what is preferred each node has, 0..1
        self._shares = np.zeros(len(columns.kind) if self._prefers else 0)
        #: that, less UNTRIED where a big job would be the first to complete
        self._added = np.zeros(len(columns.kind) if self._adds else 0)
        #: that, and what the fit adds where it is constant; minus infinity: the node can never run this
        self._bonus = np.full(len(columns.kind), _NOWHERE)
        self._scores = np.full(len(columns.kind), _NOWHERE, np.float32)
        self._judge(self._every_row())
        self._described = cluster.described.end
        self._see_who_is_left()
        self._rate(self._every_row())
        self._read_up()
        self.asleep = False

    def _every_row(self) -> Rows:
        return np.arange(len(self._cluster.rows), dtype=np.int32)

    def _best_of_freed(self, count: int) -> list[Found]:
        found = [(row, score) for row in self._cluster.freed if (score := self._score_at(row)) != _NOWHERE]
        if found:
            # as `_scores` holds them: whether a shape sleeps must not decide who is best
            found = [(row, float(np.float32(score))) for row, score in found]
            found.sort(key=lambda scored: (-scored[1], scored[0]))
        return found[:count]

    def _judge_described(self) -> None:
        described = self._cluster.described.since(self._described)
        if described is None or self._size_version != self._cluster.size_version:
            self._rebuild()
        else:
            self._judge(np.array(described, np.int32))
            self._described = self._cluster.described.end
            self._see_who_is_left()

    def _see_who_is_left(self) -> None:
        """Where this changes, the cluster has all nodes in quarantine among those that changed."""
        self.last_resort = False
        if self._cluster.any_quarantined:
            fits = self._bonus != _NOWHERE
            self.last_resort = bool(fits.any() and not (fits & ~self._cluster.columns.cordoned).any())

    def _catch_up(self) -> None:
        changed = self._cluster.changed.since(self._changed)
        if changed is None:
            self._rate(self._every_row())
            self._read_up()
        else:
            self._rate_all(changed)

    def _rate_all(self, rows: list[int]) -> None:
        """Rate all nodes that are not rated already; rows may come several times."""
        if len(rows) > SCALAR_ROWS:
            self._rate(np.array(rows, np.int32))
        else:
            for row in set(rows):
                self._scores[row] = self._score_at(row)
        self._read_up()

    def _read_up(self) -> None:
        self._changed = self._cluster.changed.end
        self._live = self._scores[: len(self._cluster.rows)]

    def _judge(self, rows: Rows) -> None:
        """What nodes could ever run, which changes only when they describe themselves anew."""
        columns = self._cluster.columns
        admitted = self._admission.gpus(columns, rows)
        fits = self._admission.nodes(self._cluster, rows, admitted)
        self._admitted[rows] = admitted
        bonus = self._cluster.weights.fit * constant_fit(self.demand, columns.largest_gpu_bytes[rows])
        if self._adds:
            added = -UNTRIED * (columns.untried[rows] & self._is_big)
            if self._prefers:
                self._shares[rows] = self._preferred.shares(self._cluster, rows, admitted)
                added += self._shares[rows]
            self._added[rows] = added
            bonus += added
        self._bonus[rows] = np.where(fits, bonus, _NOWHERE)

    def _rate(self, rows: Rows) -> None:
        demand, columns = self.demand, self._cluster.columns
        if demand.shared:
            self._rate_by_gpu(rows)
            return
        scores = self._totals(rows, self._bonus[rows])
        scores[~self._has_room(rows)] = _NOWHERE
        self._scores[rows] = scores
        if demand.gpus and columns.any_mixed:
            self._rate_by_gpu(rows[columns.mixed[rows]])

    def _rate_by_gpu(self, rows: Rows) -> None:
        columns = self._cluster.columns
        has_gpus, tightness = gpu_fit(
            self.demand, self._admitted[rows], columns.gpu_free[rows], columns.gpu_memory[rows]
        )
        bonus = self._cluster.weights.fit * tightness
        if self._adds:
            bonus += self._added[rows]
        scores = self._totals(rows, bonus)
        scores[~(has_gpus & self._has_room(rows) & (self._bonus[rows] != _NOWHERE))] = _NOWHERE
        self._scores[rows] = scores

    def _totals(self, rows: Rows, bonus: NDArray[np.float64]) -> NDArray[np.float64]:
        scores: NDArray[np.float64] = self._cluster.columns.standing[rows] + bonus
        return scores

    def _has_room(self, rows: Rows) -> NDArray[np.bool_]:
        """Where a slot and enough of everything is free, as far as counting idle GPUs tells."""
        columns = self._cluster.columns
        room: NDArray[np.bool_] = np.all(columns.free[:, rows] >= self._counted, axis=0)
        if self._cluster.any_quarantined and not self.last_resort:
            room &= ~columns.cordoned[rows]
        return room

    def _score_at(self, row: int) -> float:
        """One node's score in plain Python; minus infinity where a job of this shape does not fit now."""
        bonus, node, demand = self._bonus.item(row), self._cluster.rows[row], self.demand
        if node is None or bonus == _NOWHERE or not node.has_room(demand):
            return _NOWHERE
        if node.cordon is not None and not self.last_resort:
            return _NOWHERE
        if demand.shared or (node.mixed and demand.gpus):
            positions = self.gpus_on(node)
            if positions is None:
                return _NOWHERE
            bonus = self._cluster.weights.fit * fit(node, demand, positions)
            if self._adds:
                bonus += self._added.item(row)
        score: float = node.standing + bonus
        return score


class LeaningCandidates(Candidates):
    """For a shape that is spread or packed: of its own, so that all others do not pay for it."""

    def __init__(self, cluster: Cluster, resources: Resources, refused: Refused, number: int, leaning: Leaning) -> None:
        self._leaning = leaning
        super().__init__(cluster, resources, refused, number)

    def _totals(self, rows: Rows, bonus: NDArray[np.float64]) -> NDArray[np.float64]:
        leaning, columns = self._leaning, self._cluster.columns
        leans = leaning.constant + leaning.slope * columns.availability[rows]
        if leaning.over_idle:
            leans += leaning.over_idle / np.maximum(columns.free[0, rows], 1)
        return super()._totals(rows, bonus) + leans

    def _score_at(self, row: int) -> float:
        score, node = super()._score_at(row), self._cluster.rows[row]
        if node is None or score == _NOWHERE:
            return _NOWHERE
        leaning = self._leaning
        leans = leaning.constant + leaning.slope * node.availability
        if leaning.over_idle:
            leans += leaning.over_idle / node.idle_gpus
        return score + leans


def _highest(scores: NDArray[np.float32], count: int) -> list[Found]:
    found: list[Found] = []
    while len(found) < count:
        row = int(scores.argmax())
        score = scores.item(row)
        if score == _NOWHERE:
            break
        found.append((row, score))
        scores[row] = _NOWHERE
    for row, score in found:
        scores[row] = score
    return found
