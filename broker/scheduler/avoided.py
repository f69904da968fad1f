"""Nodes where a job's attempts have just failed for what may be the node's: its next one goes elsewhere, if it can.

A hint for the order of nodes, not a requirement: where no other node has room, the job goes there again rather than
wait. So it may be forgotten: it is in memory alone, a new leader begins without it, and so do the oldest of many jobs.
"""

from __future__ import annotations

from collections import OrderedDict

from cyxwiz_tasks.states import Cause

#: A link that breaks, a disk that is full, a GPU that fails are seldom everywhere. (A job that crashed or hung is more
#: likely to do so wherever it runs.)
CAUSES = frozenset({Cause.NETWORK, Cause.HARDWARE})
_JOBS = 10_000


class Avoided:
    def __init__(self) -> None:
        self._by_job: OrderedDict[str, list[str]] = OrderedDict()

    def note(self, job_id: str, node_id: str) -> None:
        nodes = self._by_job.pop(job_id, [])
        self._by_job[job_id] = [*(other for other in nodes if other != node_id), node_id]
        if len(self._by_job) > _JOBS:
            self._by_job.popitem(last=False)

    def of(self, job_id: str) -> list[str]:
        """The ids of its nodes, the one that failed last at the end."""
        return self._by_job.get(job_id, [])

    def forget(self, job_id: str) -> None:
        self._by_job.pop(job_id, None)
