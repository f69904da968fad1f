"""For one shape: the score of every node, minus infinity where a job of this shape does not fit now.

Computed over all nodes once, then kept up by reading the cluster's logs: a few changed rows one by one in plain Python,
many of them in one vectorised pass. Both must give equal numbers, and a property test compares them.

Where a job takes whole GPUs and a node's GPUs are all alike, how tightly it fits does not depend on what runs there:
the score is the node's standing plus a constant, and whether it fits is a matter of counting idle GPUs. Only shared
GPUs and nodes with different GPUs need a look at each GPU.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from broker.scheduler.admission import Admission
from broker.scheduler.cluster import Cluster
from broker.scheduler.columns import Rows
from broker.scheduler.demand import demand_of
from broker.scheduler.node import Node
from broker.scheduler.scoring import constant_fit, fit, gpu_fit
from cyxwiz_tasks.resources import Resources

#: Up to so many changed rows, plain Python is faster than the dozen NumPy calls of a vectorised pass; looking at each
#: GPU makes plain Python slower and the pass, too.
SCALAR_ROWS = 16
_NOWHERE = float("-inf")


class Candidates:
    def __init__(self, cluster: Cluster, resources: Resources) -> None:
        self.demand = demand_of(resources)
        #: fits nowhere; stays so until `broker.scheduler.sleepers` finds that a node with room for it was freed
        self.asleep = False
        #: of a shape that slept: the only nodes that can have room for it
        self._woken_for: set[int] = set()
        #: the best node of the last search is the only one
        self._alone = False
        self._cluster = cluster
        self._admission = Admission(resources)
        self._counted = np.array(self.demand.counted).reshape(4, 1)
        self._rebuild()

    def best(self) -> int | None:
        """The row of the node with the highest score, the lowest row among equals. None: it fits nowhere now."""
        if self._woken_for:
            self._alone = self._rate_woken()
            if self._alone:
                return next(iter(self._woken_for))
            if self.asleep:
                return None
        elif self._changed != self._cluster.changed.end:
            self._catch_up()
            self._alone = False
        row = int(self._live.argmax())
        if self._live.item(row) == _NOWHERE:
            self.asleep = True
            return None
        return row

    def admits(self) -> NDArray[np.bool_]:
        """By row, as of the last call of `best`: whether the node could ever run this."""
        admits: NDArray[np.bool_] = self._bonus != _NOWHERE
        return admits

    def wake_for(self, row: int) -> bool:
        """This node may have room by now. False for a shape that does not sleep: it reads the log."""
        if not (self.asleep or self._woken_for):
            return False
        self.asleep = False
        self._woken_for.add(row)
        return True

    def sleep_on(self, row: int) -> None:
        """This node has no room any more; if no other one woke this, it sleeps again."""
        if row in self._woken_for:
            self._woken_for.remove(row)
            self._scores[row] = _NOWHERE
            self.asleep = not self._woken_for

    def wake(self) -> None:
        """Any node may have room by now."""
        self.asleep = False
        self._woken_for = set()

    def next_best(self, row: int, count: int) -> list[tuple[int, float]]:
        """Up to `count` (row, score) after the best one, `row`."""
        if self._alone:
            return []
        scores, hidden = self._live, [(row, self._live.item(row))]
        scores[row] = _NOWHERE
        while len(hidden) <= count:
            row = int(scores.argmax())
            score = scores.item(row)
            if score == _NOWHERE:
                break
            hidden.append((row, score))
            scores[row] = _NOWHERE
        for at, score in hidden:
            scores[at] = score
        return hidden[1:]

    def score(self, row: int) -> float:
        return self._live.item(row)

    def gpus_on(self, node: Node) -> tuple[int, ...] | None:
        """Positions of the GPUs that a job of this shape would get there now; None: too few are free."""
        if not self.demand.gpus:
            return ()
        return node.best_gpus(self.demand, self._admitted[node.row].nonzero()[0].tolist())

    def _rebuild(self) -> None:
        cluster, columns = self._cluster, self._cluster.columns
        self._size_version = cluster.size_version
        self._admitted = np.zeros(columns.gpu_kind.shape, bool)
        #: what the fit adds to a node's standing where it is constant; minus infinity: the node can never run this
        self._bonus = np.full(len(columns.kind), _NOWHERE)
        self._scores = np.full(len(columns.kind), _NOWHERE, np.float32)
        every = np.arange(len(cluster.rows), dtype=np.int32)
        self._judge(every)
        self._rate(every)
        self._read_up()

    def _rate_woken(self) -> bool:
        """Rate the nodes that a sleeper was woken for. True if a single one fits: then only that one is kept."""
        if len(self._woken_for) <= SCALAR_ROWS:
            self._woken_for = {row for row in self._woken_for if self._rate_one(row)}
            if len(self._woken_for) == 1:
                return True
            self.asleep = not self._woken_for
        else:
            self._rate(np.array([*self._woken_for], np.int32))
        self._woken_for = set()
        if not self.asleep:
            self._read_up()
        return False

    def _catch_up(self) -> None:
        cluster = self._cluster
        if self._described != cluster.described.end:
            described = cluster.described.since(self._described)
            if described is None or self._size_version != cluster.size_version:
                self._rebuild()
                return
            self._judge(np.array(described, np.int32))
        changed = cluster.changed.since(self._changed)
        if changed is None:
            self._rebuild()
            return
        if len(changed) > SCALAR_ROWS:
            self._rate(np.array(changed, np.int32))
        else:
            for row in set(changed):
                self._rate_one(row)
        self._read_up()

    def _read_up(self) -> None:
        self._described, self._changed = self._cluster.described.end, self._cluster.changed.end
        self._live = self._scores[: len(self._cluster.rows)]

    def _judge(self, rows: Rows) -> None:
        """What nodes could ever run, which changes only when they describe themselves anew."""
        columns = self._cluster.columns
        admitted = self._admission.gpus(columns, rows)
        fits = self._admission.nodes(self._cluster, rows, admitted)
        self._admitted[rows] = admitted
        bonus = self._cluster.weights.fit * constant_fit(self.demand, columns.gpu_memory[rows])
        self._bonus[rows] = np.where(fits, bonus, _NOWHERE)

    def _rate(self, rows: Rows) -> None:
        demand, columns = self.demand, self._cluster.columns
        if demand.shared:
            self._rate_by_gpu(rows)
            return
        scores = columns.standing[rows] + self._bonus[rows]
        scores[~self._has_room(rows)] = _NOWHERE
        self._scores[rows] = scores
        if demand.gpus and columns.any_mixed:
            self._rate_by_gpu(rows[columns.mixed[rows]])

    def _rate_by_gpu(self, rows: Rows) -> None:
        columns = self._cluster.columns
        has_gpus, tightness = gpu_fit(
            self.demand, self._admitted[rows], columns.gpu_free[rows], columns.gpu_memory[rows]
        )
        scores = columns.standing[rows] + self._cluster.weights.fit * tightness
        scores[~(has_gpus & self._has_room(rows) & (self._bonus[rows] != _NOWHERE))] = _NOWHERE
        self._scores[rows] = scores

    def _has_room(self, rows: Rows) -> NDArray[np.bool_]:
        """Where a slot and enough of everything is free, as far as counting idle GPUs tells."""
        room: NDArray[np.bool_] = np.all(self._cluster.columns.free[:, rows] >= self._counted, axis=0)
        return room

    def _rate_one(self, row: int) -> bool:
        """Whether a job of this shape fits there now."""
        bonus, node, demand = self._bonus.item(row), self._cluster.rows[row], self.demand
        if node is None or bonus == _NOWHERE or not node.has_room(demand):
            self._scores[row] = _NOWHERE
            return False
        if demand.shared or (node.mixed and demand.gpus):
            positions = self.gpus_on(node)
            if positions is None:
                self._scores[row] = _NOWHERE
                return False
            bonus = self._cluster.weights.fit * fit(node, demand, positions)
        self._scores[row] = node.standing + bonus
        return True
