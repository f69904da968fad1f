"""Shapes that fit nowhere, and whom of them a freed node wakes.

In a full cluster most shapes are blocked, and every job that ends frees one node. Asking each blocked shape about that
node would cost as many Python calls as there are shapes; here it is one vectorised pass over all of them. It may wake
a shape for nothing (it only counts idle GPUs), and never lets one sleep that fits.
"""

from __future__ import annotations

import numpy as np

from broker.scheduler.candidates import Candidates
from broker.scheduler.cluster import Cluster


class Sleepers:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.forget()

    def forget(self) -> None:
        """Wake all of them."""
        for candidates in getattr(self, "_members", ()):
            candidates.wake()
        cluster = self._cluster
        self._members: list[Candidates] = []
        self._freed, self._described = cluster.freed.end, cluster.described.end
        self._needs = np.zeros((3, 16, 1), np.int64)
        self._admits = np.zeros((16, len(cluster.columns.kind)), bool)

    def add(self, candidates: Candidates) -> None:
        """A shape that has just been found to fit nowhere; it may be a member already."""
        if candidates in self._members:
            return
        number = len(self._members)
        if number == len(self._admits):
            self._needs = np.concatenate([self._needs, np.zeros_like(self._needs)], axis=1)
            self._admits = np.concatenate([self._admits, np.zeros_like(self._admits)])
        self._members.append(candidates)
        self._needs[:, number, 0] = candidates.demand.counted
        self._admits[number] = candidates.admits()

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
        count = len(self._members)
        fits = np.all(cluster.columns.free[:, rows][:, None] >= self._needs[:, :count], axis=0)
        fits &= self._admits[:count, rows]
        for number in fits.any(axis=1).nonzero()[0].tolist():
            self._members[number].wake_for(rows[fits[number]].tolist())
