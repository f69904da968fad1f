"""Which waiting jobs belong to which array, and how many of an array may be at work at once. Pure.

A job has a place of its array from when it waits for a node until its attempt is over. Where all are taken, it waits
here: those in the backlog and on nodes are never more than the array's limit, whoever leads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush

from broker.scheduler.backlog import Waiting
from cyxwiz_tasks.early_stopping import SuccessiveHalving


@dataclass(slots=True)
class _Array:
    limit: int | None
    rule: SuccessiveHalving | None
    members: set[str] = field(default_factory=set)
    #: jobs that have a place
    at_work: set[str] = field(default_factory=set)
    #: jobs that wait for one, and the order in which they get it
    kept: dict[str, Waiting] = field(default_factory=dict)
    order: list[tuple[int, str]] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        return self.limit is not None and len(self.at_work) >= self.limit


class Arrays:
    """A copy of what the record knows of arrays whose jobs have not all ended."""

    def __init__(self) -> None:
        self._arrays: dict[str, _Array] = {}
        self._array_of: dict[str, str] = {}
        #: arrays in which a place became free since `admit`
        self._freed: set[str] = set()

    def join(self, job_id: str, array_id: str, limit: int | None, rule: SuccessiveHalving | None = None) -> None:
        """A job of an array was accepted; `limit` of that array may be at work at once, or None: any number.

        `rule` says which of them end early.
        """
        self._array_of[job_id] = array_id
        self._arrays.setdefault(array_id, _Array(limit, rule)).members.add(job_id)

    def enter(self, waiting: Waiting) -> bool:
        """Give a job a place, or keep it until there is one. True: it may wait for a node."""
        array = self._of(waiting.job_id)
        if array is None:
            return True
        if array.is_full and waiting.job_id not in array.at_work:
            array.kept[waiting.job_id] = waiting
            heappush(array.order, (waiting.sequence, waiting.job_id))
            return False
        array.at_work.add(waiting.job_id)
        return True

    def take_place(self, job_id: str) -> None:
        """A job is on a node already."""
        array = self._of(job_id)
        if array is not None:
            array.at_work.add(job_id)

    def leave_place(self, job_id: str) -> None:
        """A job waits for no node and is on none."""
        array = self._of(job_id)
        if array is not None and job_id in array.at_work:
            array.at_work.remove(job_id)
            self._freed.add(self._array_of[job_id])

    def admit(self) -> list[Waiting]:
        """Give the places that became free to those that wait for one, in the order of their acceptance."""
        admitted: list[Waiting] = []
        for array_id in sorted(self._freed):
            array = self._arrays.get(array_id)
            while array is not None and array.order and not array.is_full:
                _, job_id = heappop(array.order)
                waiting = array.kept.pop(job_id, None)
                if waiting is not None:
                    array.at_work.add(job_id)
                    admitted.append(waiting)
        self._freed.clear()
        return admitted

    def held(self) -> Iterator[Waiting]:
        """The jobs that wait for a place."""
        return (waiting for array in self._arrays.values() for waiting in array.kept.values())

    def let_go(self, job_id: str) -> bool:
        """A job waits no longer. False: it did not wait here."""
        array = self._of(job_id)
        return array is not None and array.kept.pop(job_id, None) is not None

    def forget(self, job_id: str) -> str | None:
        """A job has ended; its array, if it has one."""
        self.leave_place(job_id)
        self.let_go(job_id)
        array_id = self._array_of.pop(job_id, None)
        if array_id is not None:
            array = self._arrays[array_id]
            array.members.discard(job_id)
            if not array.members:
                del self._arrays[array_id]
        return array_id

    def rules(self) -> dict[str, tuple[SuccessiveHalving, frozenset[str]]]:
        """By array, those that have a rule for ending jobs early: it, and the jobs that have not ended."""
        return {id: (array.rule, frozenset(array.members)) for id, array in self._arrays.items() if array.rule}

    def limit_of(self, job_id: str) -> int | None:
        """The limit for which a job waits here; None: it does not."""
        array = self._of(job_id)
        return array.limit if array is not None and job_id in array.kept else None

    def _of(self, job_id: str) -> _Array | None:
        array_id = self._array_of.get(job_id)
        return self._arrays[array_id] if array_id is not None else None
