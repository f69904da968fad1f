"""Places that are being cleared, each for one waiting job.

What one of those that must leave gives back is kept until all have: a half cleared place would otherwise go to whoever
fits into it, such as the one that has just left.
"""

from __future__ import annotations

from collections.abc import Iterator

from broker.scheduler.cluster import Cluster
from broker.scheduler.preemption import Clearing, Wanted


class Claims:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._by_job: dict[str, Clearing] = {}
        #: by attempt (its job's id): the job that waits for its end
        self._waited_for: dict[str, str] = {}
        #: by waiting job: the names under which its place is held
        self._kept: dict[str, list[str]] = {}

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._by_job

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._by_job))

    def add(self, job_id: str, clearing: Clearing) -> None:
        """A place is being cleared for this job."""
        self._by_job[job_id], self._kept[job_id] = clearing, []
        for awaited in clearing.awaited:
            # One that ends anyway may be waited for by several jobs; its part is kept for the first of them.
            self._waited_for.setdefault(awaited, job_id)

    def release(self, job_id: str) -> None:
        """An attempt is over: its place is free, or kept for the job that waits for it and for others there."""
        cluster = self._cluster
        node = cluster.node_of(job_id)
        holding = node.holdings[job_id] if node is not None else None
        cluster.release(job_id)
        claimant = self._waited_for.pop(job_id, None)
        if claimant is None:
            return
        if claimant not in self._waited_for.values():
            self.drop(claimant)
        elif node is not None and holding is not None:
            name = f"kept for {claimant}: {job_id}"
            self._kept[claimant].append(name)
            cluster.take_at(node, name, *holding)

    def drop(self, job_id: str) -> None:
        """Nothing is kept for this job any more: its place is clear, or it waits no longer."""
        for name in self._kept.pop(job_id):
            self._cluster.release(name)
        del self._by_job[job_id]
        self._waited_for = {awaited: job for awaited, job in self._waited_for.items() if job != job_id}

    def promised(self) -> dict[str, list[Wanted]]:
        """By node, what is promised there."""
        found: dict[str, list[Wanted]] = {}
        for clearing in self._by_job.values():
            found.setdefault(clearing.node_id, []).append(clearing.wanted)
        return found
