"""What is compared: each policy takes what arrives and says what is placed now, on the product's own cluster model."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice

from broker.scheduler.backlog import Backlog, Waiting
from broker.scheduler.cluster import Cluster
from broker.scheduler.placement import Placement, Placer
from broker.scheduler.places import able
from broker.scheduler.reservations import Blocked, plan
from cyxwiz_tasks.settings import Settings
from cyxwiz_tasks.states import Priority

_ALL = 1_000_000
#: kinds of waiting jobs that are looked at for a reservation, as by the product
_KINDS = 16
_RESERVE_AFTER_SECONDS = float(Settings.model_fields["reserve_after_seconds"].default)


@dataclass
class Ours:
    """The product's backlog and placement: priorities, shares, the score, reservations; critical jobs take places."""

    cluster: Cluster
    preempts: bool = True

    def __post_init__(self) -> None:
        self.backlog = Backlog()
        self.placer = Placer(self.cluster, self.backlog)
        self._blocked_since: dict[str, float] = {}

    def add(self, waiting: Waiting) -> None:
        self.backlog.add(waiting)

    def place(self, now: float) -> list[Placement]:
        self.backlog.settle(now, self.cluster.totals)
        return self.placer.place(_ALL, now)

    def reserve(self, now: float) -> None:
        """As `duties.reserve` does it, at each event; nobody knows when a job here ends."""
        claims, contended, blocked = self.placer.claims, set[int](), list[Blocked]()
        queues = islice(self.backlog, _KINDS)
        heads = [(queue, queue.find(queue.head[1])) for queue in queues if queue.head and not queue.is_held_back]
        since, self._blocked_since = self._blocked_since, {}
        for queue, waiting in sorted(heads, key=lambda one: (-one[0].rank, one[1].job_id not in claims)):
            began = self._blocked_since[waiting.job_id] = since.get(waiting.job_id, now)
            if now - began < _RESERVE_AFTER_SECONDS:
                continue
            fitting = able(self.cluster, waiting.resources, queue.applicant)
            could = set(fitting.rows.tolist())
            if could and not contended & could:
                blocked.append(Blocked(waiting, fitting.some(self.cluster, 0, _ALL)))
            contended |= could
        current = {claim.job_id: claim for claim in claims}
        claims.reserve(plan(blocked, lambda _: None, now, current))

    def over(self, job_id: str) -> None:
        """A job's place is free."""
        self.cluster.release(job_id)
        self.backlog.discharge(job_id)

    def urgent(self) -> list[Waiting]:
        """The heads of those that wait and may take places."""
        if not self.preempts:
            return []
        return [queue.first(1)[0] for queue in self.backlog if queue.priority == Priority.CRITICAL]


@dataclass
class BestFit(Ours):
    """Who fits is placed, in the order of arrival; nobody has a priority or a share."""

    preempts: bool = False

    def add(self, waiting: Waiting) -> None:
        super().add(waiting._replace(owner="", priority=Priority.NORMAL))

    def reserve(self, now: float) -> None:
        """It knows none."""


@dataclass
class Fifo(Ours):
    """Strictly in the order of arrival: who does not fit keeps everybody behind him waiting."""

    preempts: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.line: deque[Waiting] = deque()

    def add(self, waiting: Waiting) -> None:
        self.line.append(waiting._replace(owner="", priority=Priority.NORMAL))

    def reserve(self, now: float) -> None:
        """Nobody passes anybody: there is no need."""

    def place(self, now: float) -> list[Placement]:
        placed: list[Placement] = []
        while self.line:
            self.backlog.add(self.line[0])
            found = self.placer.place(1)
            if not found:
                self.backlog.remove(self.line[0].job_id)
                break
            self.line.popleft()
            placed += found
        return placed
