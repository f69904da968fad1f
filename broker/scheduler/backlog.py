"""Waiting jobs, in the order in which they are placed: priority first, then by sequence number.

They are grouped into queues of equal shape and priority, so whoever looks for work looks at as many heads as there are
kinds of work. A job costs its id and its number: about 170 bytes with the text of the id (docs/performance.md).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from heapq import heappop, heappush
from typing import NamedTuple

from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority

_TRIM = 1024


class Waiting(NamedTuple):
    """One waiting job, as it comes out of the backlog and may go back in."""

    job_id: str
    sequence: int
    resources: Resources
    priority: Priority


class Queue:
    """Jobs of one shape and priority by rising sequence number.

    Cancelled ones stay in the arrays until they come to the head or are the majority: `_live` says who still waits.
    """

    def __init__(self, resources: Resources, priority: Priority) -> None:
        self.resources, self.priority = resources, priority
        self.shape, self.rank = resources.shape, priority.rank
        #: number and id of who is next; None: nobody waits
        self.head: tuple[int, str] | None = None
        self._live: dict[str, int] = {}
        self._ids: list[str] = []
        self._sequences = array("q")
        self._at = 0
        #: those that came with a number below the last one's, such as a lost job that waits again
        self._returned: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._live

    def add(self, job_id: str, sequence: int) -> None:
        self._live[job_id] = sequence
        if not self._sequences or sequence > self._sequences[-1]:
            self._ids.append(job_id)
            self._sequences.append(sequence)
        else:
            heappush(self._returned, (sequence, job_id))
        if self.head is None or sequence < self.head[0]:
            self.head = (sequence, job_id)

    def remove(self, job_id: str) -> None:
        """Raises KeyError if the job does not wait here."""
        del self._live[job_id]
        if len(self._ids) - self._at > 2 * len(self._live) + _TRIM:
            self._drop_cancelled()
        self._find_head()

    def pop(self) -> Waiting:
        """Take the head. Raises LookupError if nobody waits."""
        if self.head is None:
            raise LookupError("nobody waits in this queue")
        sequence, job_id = self.head
        del self._live[job_id]
        if self._at > _TRIM and 2 * self._at > len(self._ids):
            del self._ids[: self._at], self._sequences[: self._at]
            self._at = 0
        self._find_head()
        return Waiting(job_id, sequence, self.resources, self.priority)

    def first(self, count: int) -> list[Waiting]:
        """Up to about `count` of those who are next, as far as they are in order: returned ones may stand behind."""
        ids = [id for _, id in sorted(self._returned)[:count]] + self._ids[self._at : self._at + count]
        return [
            Waiting(id, sequence, self.resources, self.priority)
            for id in dict.fromkeys(ids)
            if (sequence := self._live.get(id)) is not None
        ]

    def count_before(self, sequence: int) -> int:
        """How many wait here with a lower number."""
        if len(self._live) < len(self._ids) - self._at + len(self._returned):
            self._drop_cancelled()
        return (
            bisect_left(self._sequences, sequence, lo=self._at)
            - self._at
            + sum(number < sequence for number, _ in self._returned)
        )

    def sequence_of(self, job_id: str) -> int:
        """Raises KeyError if the job does not wait here."""
        return self._live[job_id]

    def _find_head(self) -> None:
        live, ids, sequences, at = self._live, self._ids, self._sequences, self._at
        while at < len(ids) and live.get(ids[at]) != sequences[at]:
            at += 1
        self._at = at
        self.head = (sequences[at], ids[at]) if at < len(ids) else None
        if self._returned:
            while self._returned and live.get(self._returned[0][1]) != self._returned[0][0]:
                heappop(self._returned)
            if self._returned and (self.head is None or self._returned[0] < self.head):
                self.head = self._returned[0]

    def _drop_cancelled(self) -> None:
        ordered = sorted((sequence, job_id) for job_id, sequence in self._live.items())
        self._ids = [job_id for _, job_id in ordered]
        self._sequences = array("q", (sequence for sequence, _ in ordered))
        self._at, self._returned = 0, []


#: -rank, the head's sequence number, the queue's own number (so that queues are never compared), the queue
_Place = tuple[int, int, int, Queue]


class Backlog:
    """All waiting jobs. `order` has one entry a queue, the one to be served first at the front."""

    def __init__(self) -> None:
        self.order: list[_Place] = []
        self._queues: dict[tuple[str, Priority], Queue] = {}
        self._places: dict[Queue, _Place] = {}
        self._waiting = 0
        #: queues opened so far, which gives each its number
        self.opened = 0

    def __len__(self) -> int:
        return self._waiting

    def __contains__(self, job_id: str) -> bool:
        return self._queue_of(job_id) is not None

    def add(self, waiting: Waiting) -> bool:
        """Let a job wait. False: it waits here already. Numbers rise with the order of acceptance; gaps do no harm."""
        key = (waiting.resources.shape, waiting.priority)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = Queue(waiting.resources, waiting.priority)
        elif waiting.job_id in queue:
            return False
        head = queue.head
        queue.add(waiting.job_id, waiting.sequence)
        self._waiting += 1
        if queue.head is not head:
            self._put_in_order(queue)
        return True

    def waits_for_the_same(self, waiting: Waiting) -> bool:
        """Whether somebody of this shape and priority waits."""
        return (waiting.resources.shape, waiting.priority) in self._queues

    def remove(self, job_id: str) -> bool:
        """A waiting job was cancelled. False: it does not wait here. Costs one look into each queue."""
        queue = self._queue_of(job_id)
        if queue is None:
            return False
        head = queue.head
        queue.remove(job_id)
        self._waiting -= 1
        if queue.head is not head:
            self._put_in_order(queue)
        return True

    def pop(self, position: int) -> Waiting:
        """Take the head of the queue at this position of `order`; the queue stays there or moves towards the end."""
        rank, _, number, queue = self.order.pop(position)
        waiting = queue.pop()
        self._waiting -= 1
        if queue.head is None:
            del self._queues[queue.shape, queue.priority], self._places[queue]
        else:
            place = self._places[queue] = (rank, queue.head[0], number, queue)
            insort(self.order, place)
        return waiting

    def find(self, job_id: str) -> Waiting | None:
        """A waiting job by its id."""
        queue = self._queue_of(job_id)
        if queue is None:
            return None
        return Waiting(job_id, queue.sequence_of(job_id), queue.resources, queue.priority)

    def count_ahead(self, priority: Priority, sequence: int | None = None) -> int:
        """How many jobs come before one with this priority and number; None: before one submitted now."""
        ahead = 0
        for queue in self._queues.values():
            if queue.rank > priority.rank or (queue.priority == priority and sequence is None):
                ahead += len(queue)
            elif queue.priority == priority and sequence is not None:
                ahead += queue.count_before(sequence)
        return ahead

    def _queue_of(self, job_id: str) -> Queue | None:
        return next((queue for queue in self._queues.values() if job_id in queue), None)

    def _put_in_order(self, queue: Queue) -> None:
        old = self._places.pop(queue, None)
        if old is not None:
            del self.order[bisect_left(self.order, old)]
        if queue.head is None:
            del self._queues[queue.shape, queue.priority]
            return
        if old is None:
            self.opened += 1
        number = self.opened if old is None else old[2]
        place = self._places[queue] = (-queue.rank, queue.head[0], number, queue)
        insort(self.order, place)
