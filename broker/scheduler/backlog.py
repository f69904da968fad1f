"""Waiting jobs, in the order in which they are placed: priority first; within one, the project and in it the owner who
has had least of the cluster (`fair_share.py`); an owner's own by sequence number.

They are grouped into queues of equal shape, priority, time limit, project and owner, so whoever looks for work looks at
as many heads as there are kinds of work. A job costs its id and its number: about 170 bytes with the text of the id
(docs/performance.md).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from heapq import heappop, heappush
from math import ceil, inf
from typing import Any, ClassVar, NamedTuple

from broker.scheduler.acceptance import NOBODY_REFUSES, Refused
from broker.scheduler.branch import Branch, Place
from broker.scheduler.demand import demand_of
from broker.scheduler.fair_share import Account, FairShare, Person
from broker.scheduler.quotas import Amounts, amounts_of
from broker.scheduler.shares import Taken, Totals, expected
from cyxwiz_tasks.conditions import Applicant
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority

_TRIM = 1024


class Waiting(NamedTuple):
    """One waiting job, as it comes out of the backlog and may go back in."""

    job_id: str
    sequence: int
    resources: Resources
    priority: Priority
    owner: str = ""
    project: str = ""
    #: how long it runs at most, as `coarse` has it; None: nobody knows
    time_limit_seconds: float | None = None

    @property
    def applicant(self) -> Applicant:
        """Whose job a node may take or refuse."""
        return Applicant(self.owner, self.project, self.priority)

    @property
    def amounts(self) -> Amounts:
        """What quotas count of it."""
        return amounts_of(expected(demand_of(self.resources)))


#: up to so many seconds, time limits are told apart by so many
_STEPS = ((60, 1), (600, 10), (3600, 60), (12 * 3600, 600), (10 * 86400, 3600), (inf, 86400))


def coarse(seconds: float | None) -> float | None:
    """A time limit, rounded up so that there are few different ones; those that people write stay as they are."""
    if seconds is None:
        return None
    step = next(step for most, step in _STEPS if seconds <= most)
    return float(ceil(seconds / step) * step)


class Queue:
    """Jobs of one shape, priority, time limit and owner by rising sequence number.

    Cancelled ones stay in the arrays until they come to the head or are the majority: `_live` says who still waits.
    """

    #: a leaf of the tree
    order: ClassVar[tuple[Place, ...]] = ()

    def __init__(
        self,
        resources: Resources,
        priority: Priority,
        owner: str = "",
        project: str = "",
        time_limit_seconds: float | None = None,
    ) -> None:
        self.resources, self.priority, self.owner, self.project = resources, priority, owner, project
        self.time_limit_seconds = time_limit_seconds
        self.shape, self.rank = resources.shape, priority.rank
        #: as a child of its owner's branch, which keeps `place`
        self.name = self.shape, time_limit_seconds
        self.place: Place | None = None
        self.line: Branch
        #: whose it is
        self.account: Account
        self.applicant = Applicant(owner, project, priority)
        #: which nodes refuse its jobs, by their own conditions, as of when `shapes` was found out
        self.refused: Refused = NOBODY_REFUSES
        #: what quotas count of each of its jobs, and whether they admit one more
        self.amounts = amounts_of(expected(demand_of(resources)))
        self.admitted = True
        #: its scores, known as soon as `shapes` is: `broker.scheduler.candidates.Candidates`
        self.candidates: Any = None
        #: the one bit of its shape, none while it is not admitted; None: not known yet
        self.shapes: int | None = None
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

    @property
    def is_full(self) -> bool:
        """Whether its owner has as much at work as is allowed: it is no place that it waits for."""
        return self.account.person is not None and self.account.person.is_full

    @property
    def is_held_back(self) -> bool:
        """Whether its owner, or his project, has as much at work as is allowed."""
        return self.is_full or not self.admitted

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
        return self._waiting(job_id, sequence)

    def first(self, count: int) -> list[Waiting]:
        """Up to about `count` of those who are next, as far as they are in order: returned ones may stand behind."""
        ids = [id for _, id in sorted(self._returned)[:count]] + self._ids[self._at : self._at + count]
        return [
            self._waiting(id, sequence) for id in dict.fromkeys(ids) if (sequence := self._live.get(id)) is not None
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

    def find(self, job_id: str) -> Waiting:
        """Raises KeyError if the job does not wait here."""
        return self._waiting(job_id, self._live[job_id])

    def _waiting(self, job_id: str, sequence: int) -> Waiting:
        limit_seconds = self.time_limit_seconds
        return Waiting(job_id, sequence, self.resources, self.priority, self.owner, self.project, limit_seconds)

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


#: shape, priority, project, owner, time limit
_Kind = tuple[str, Priority, str, str, float | None]


def _kind(waiting: Waiting) -> _Kind:
    return waiting.resources.shape, waiting.priority, waiting.project, waiting.owner, waiting.time_limit_seconds


class Backlog:
    """All waiting jobs: below `root` its priorities, their projects, their owners, and the owners' queues."""

    def __init__(self, shares: FairShare | None = None) -> None:
        self.root = Branch(None, "")
        self.shares = shares or FairShare()
        self._queues: dict[_Kind, Queue] = {}
        #: by project or owner, one for each priority at which somebody waits
        self._branches: dict[Account, list[Branch]] = {}
        #: queues of one shape and priority
        self._alike: Counter[tuple[str, Priority]] = Counter()
        #: queues of one project whose jobs count alike for quotas
        self._wishes: dict[tuple[str, Amounts], set[Queue]] = {}
        self._waiting = 0
        #: branches with several owners or projects, whose order depends on what these have
        self._contested = 0

    def __len__(self) -> int:
        return self._waiting

    def __contains__(self, job_id: str) -> bool:
        return self.queue_of(job_id) is not None

    def __iter__(self) -> Iterator[Queue]:
        """All queues, the one to be served first at the front."""
        for priority in self.root:
            for project in priority:
                for owner in project:
                    yield from owner

    @property
    def kinds(self) -> int:
        """How many queues there are."""
        return len(self._queues)

    def add(self, waiting: Waiting) -> bool:
        """Let a job wait. False: it waits here already. Numbers rise with the order of acceptance; gaps do no harm."""
        kind = _kind(waiting)
        queue = self._queues.get(kind)
        if queue is None:
            queue = Queue(*waiting[2:])
            queue.add(waiting.job_id, waiting.sequence)
            self._open(kind, queue)
        elif waiting.job_id in queue:
            return False
        else:
            queue.add(waiting.job_id, waiting.sequence)
            self._put_in_order(queue)
        self._waiting += 1
        return True

    def waits_for_the_same(self, waiting: Waiting) -> bool:
        """Whether somebody of this shape and priority waits."""
        return (waiting.resources.shape, waiting.priority) in self._alike

    def remove(self, job_id: str) -> bool:
        """A waiting job was cancelled. False: it does not wait here. Costs one look into each queue."""
        queue = self.queue_of(job_id)
        if queue is None:
            return False
        self._take_out(queue, job_id)
        return True

    def take_back(self, waiting: Waiting) -> None:
        """Undo `add`. Another job with this id, as one that was sent by mistake, may wait among others: it stays."""
        queue = self._queues.get(_kind(waiting))
        if queue is not None and waiting.job_id in queue:
            self._take_out(queue, waiting.job_id)

    def _take_out(self, queue: Queue, job_id: str) -> None:
        queue.remove(job_id)
        self._waiting -= 1
        self._put_in_order(queue)

    def pop(self, queue: Queue) -> Waiting:
        """Take the head of a queue; the queue stays where it is among its owner's, or moves towards the end."""
        waiting = queue.pop()
        self._waiting -= 1
        if queue.head is not None:
            queue.line.put(queue, queue.head[0])
        else:
            self._close(queue)
        return waiting

    def queue_of(self, job_id: str) -> Queue | None:
        """Where a job waits. Costs one look into each queue."""
        return next((queue for queue in self._queues.values() if job_id in queue), None)

    def find(self, job_id: str) -> Waiting | None:
        """A waiting job by its id."""
        queue = self.queue_of(job_id)
        if queue is None:
            return None
        return queue.find(job_id)

    # Whose turn it is -------------------------------------------------------------------------------------------------

    def charge(self, waiting: Waiting, taken: Taken, account: Account | None = None) -> None:
        """A job holds a place: its owner and project have had more than before. `account`: its owner's, if known."""
        account = account or self.shares.account(waiting.project, waiting.owner)
        self.shares.take(waiting.job_id, account, taken)
        person = account.person
        if person is not None and person.running == person.running_limit:
            self.reconsider(person)
        if self.shares.quotas.active:
            self.reconsider_quotas()
        if self._contested:
            self._reorder(account)

    def discharge(self, job_id: str) -> None:
        """A job holds no place any more, if it held one."""
        account = self.shares.release(job_id)
        if account is None:
            return
        if account.person is not None and account.person.running_limit is not None:
            self.reconsider(account.person)
        if self.shares.quotas.active:
            self.reconsider_quotas()
        if self._contested:
            self._reorder(account)

    def reconsider(self, person: Person) -> None:
        """An owner may have reached his limit on running jobs, or not any more."""
        for account in person.accounts:
            for branch in self._branches.get(account, ()):
                branch.changed()

    def reconsider_quotas(self) -> None:
        """Quotas may admit other jobs than before."""
        for (project, amounts), queues in self._wishes.items():
            admitted = self.shares.quotas.admits(project, amounts)
            for queue in queues:
                if queue.admitted == admitted:
                    break  # and so it is with all of them
                queue.admitted, queue.shapes = admitted, None
                queue.line.changed()

    def waiting_of(self, owner: str) -> int:
        """How many of an owner's jobs wait, in all projects."""
        return sum(len(queue) for queue in self._queues.values() if queue.owner == owner)

    def settle(self, now: float, totals: Totals) -> None:
        """Let time pass for all accounts: `FairShare.settle`."""
        self.shares.settle(now, totals)
        self.shares.forget(set(self._branches))
        if self.shares.quotas.active:
            self.reconsider_quotas()
        if self._contested:
            for account in self._branches:
                self._reorder_one(account)

    def _reorder(self, account: Account) -> None:
        self._reorder_one(account)
        if account.parent is not None:
            self._reorder_one(account.parent)

    def _reorder_one(self, account: Account) -> None:
        for branch in self._branches.get(account, ()):
            parent = branch.parent
            # Who is alone has no turn to wait for.
            if parent is not None and len(parent.order) > 1:
                parent.put(branch, self.shares.key(account))

    # The tree ---------------------------------------------------------------------------------------------------------

    def _put_in_order(self, queue: Queue) -> None:
        if queue.head is not None:
            queue.line.put(queue, queue.head[0])
        else:
            self._close(queue)

    def _close(self, queue: Queue) -> None:
        del self._queues[queue.shape, queue.priority, queue.project, queue.owner, queue.time_limit_seconds]
        self._alike[queue.shape, queue.priority] -= 1
        if not self._alike[queue.shape, queue.priority]:
            del self._alike[queue.shape, queue.priority]
        alike = self._wishes[queue.project, queue.amounts]
        alike.remove(queue)
        if not alike:
            del self._wishes[queue.project, queue.amounts]
        queue.line.close(queue)
        self._close_if_empty(queue.line)

    def _open(self, kind: _Kind, queue: Queue) -> None:
        assert queue.head is not None
        project = self.shares.account(queue.project, None)
        owner = self.shares.account(queue.project, queue.owner)
        priority = self.root.children.get(queue.priority)
        if not isinstance(priority, Branch):
            priority = Branch(self.root, queue.priority)
            self.root.open(priority, -queue.rank)
        line = self._branch_of(self._branch_of(priority, project), owner)
        queue.admitted = self.shares.quotas.admits(queue.project, queue.amounts)
        self._wishes.setdefault((queue.project, queue.amounts), set()).add(queue)
        line.open(queue, queue.head[0])
        queue.line, queue.account = line, owner
        self._queues[kind] = queue
        self._alike[queue.shape, queue.priority] += 1

    def _branch_of(self, parent: Branch, account: Account) -> Branch:
        found = parent.children.get(account)
        if isinstance(found, Branch):
            return found
        if len(parent.order) == 1:
            # It was not kept in order while it was alone.
            only = parent.order[0][2]
            parent.put(only, self.shares.key(only.account))
            self._contested += 1
        branch = Branch(parent, account, account)
        parent.open(branch, self.shares.key(account))
        self._branches.setdefault(account, []).append(branch)
        return branch

    def _close_if_empty(self, branch: Branch) -> None:
        while not branch.order and branch.parent is not None:
            if branch.account is not None:
                self._branches[branch.account].remove(branch)
                if not self._branches[branch.account]:
                    del self._branches[branch.account]
            branch.parent.close(branch)
            self._contested -= branch.account is not None and len(branch.parent.order) == 1
            branch = branch.parent
