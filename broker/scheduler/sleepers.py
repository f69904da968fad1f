"""Shapes that fit nowhere, and whom of them a freed node wakes.

In a full cluster most shapes are blocked, and every job that ends frees one node. Asking each blocked shape about that
node would cost as many Python calls as there are shapes; here it is one vectorised pass over all of them. It may wake
a shape for nothing (it only counts idle GPUs), and never lets one sleep that fits.
"""

from __future__ import annotations

import numpy as np

from broker.scheduler.candidates import Candidates
from broker.scheduler.cluster import Cluster
from broker.scheduler.node import Node

_SHAPES = 16


class Sleepers:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._numbers: dict[Candidates, int] = {}
        self.forget()

    def forget(self) -> None:
        """Wake all of them."""
        for candidates in self._numbers:
            candidates.wake()
        cluster = self._cluster
        self._numbers, self._members = {}, list[Candidates]()
        self._freed, self._described = cluster.freed.end, cluster.described.end
        #: whom the last call of `wake` woke, by the row that woke them
        self._woken: dict[int, list[Candidates]] = {}
        #: by number of the shape: the idle GPUs it needs, and the nodes that could ever run it
        self._idle_gpus = np.zeros(_SHAPES, np.int64)
        self._admits = np.zeros((len(cluster.columns.kind), _SHAPES), bool)

    def add(self, candidates: Candidates) -> None:
        """A shape that has just been found to fit nowhere; it may be a member already."""
        if candidates in self._numbers:
            return
        number = self._numbers[candidates] = len(self._members)
        self._members.append(candidates)
        if number == self._admits.shape[1]:
            self._idle_gpus = np.concatenate([self._idle_gpus, np.zeros_like(self._idle_gpus)])
            self._admits = np.concatenate([self._admits, np.zeros_like(self._admits)], axis=1)
        self._idle_gpus[number] = candidates.demand.counted[0]
        self._admits[:, number] = candidates.admits()

    def wake(self) -> None:
        """Wake whoever may fit a node that was freed since the last call."""
        cluster = self._cluster
        if self._freed == cluster.freed.end:
            return
        rows = cluster.freed.since(self._freed)
        if rows is None or self._described != cluster.described.end:
            self.forget()
            return
        self._freed = cluster.freed.end
        self._woken = {}
        if not self._members:
            return
        for row in set(rows):
            node = cluster.rows[row]
            if node is not None and node.is_open:
                self._wake_for(node)

    def booked(self, node: Node) -> None:
        """A job was placed there: of those that the node woke, most can sleep on without being asked."""
        for candidates in self._woken.get(node.row, ()):
            if not node.has_room(candidates.demand):
                candidates.sleep_on(node.row)

    def _wake_for(self, node: Node) -> None:
        count = len(self._members)
        woken: list[Candidates] = []
        fits = self._admits[node.row, :count] & (self._idle_gpus[:count] <= node.idle_gpus)
        for number in fits.nonzero()[0].tolist():
            candidates = self._members[number]
            if node.has_room(candidates.demand) and candidates.wake_for(node.row):
                woken.append(candidates)
        self._woken[node.row] = woken
