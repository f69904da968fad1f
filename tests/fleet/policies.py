"""What is compared: each policy takes what arrives and says what is placed now, on the product's own cluster model."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from broker.scheduler.backlog import Backlog, Waiting
from broker.scheduler.claims import ENDING_SECONDS
from broker.scheduler.cluster import Cluster
from broker.scheduler.lines import Lines
from broker.scheduler.placement import Placement, Placer
from cyxwiz_tasks.settings import Settings
from cyxwiz_tasks.states import Priority

_ALL = 1_000_000
_RESERVE_AFTER_SECONDS = float(Settings.model_fields["reserve_after_seconds"].default)


@dataclass
class Promise:
    """A job starts until `starts_at` if nobody more urgent takes its place; it was told so at `made_at`."""

    rank: int
    #: where the place is by now
    node_id: str
    made_at: float
    starts_at: float
    is_outranked: bool = False


@dataclass
class Ours:
    """The product's backlog and placement: priorities, shares, the score, reservations; critical jobs take places."""

    cluster: Cluster
    preempts: bool = True
    consolidates: bool = True

    def __post_init__(self) -> None:
        self.backlog = Backlog()
        self.placer = Placer(self.cluster, self.backlog)
        self._lines = Lines(_RESERVE_AFTER_SECONDS)
        #: by job, when its attempt ends at the latest, where it has a time limit
        self._ends: dict[str, float] = {}
        #: by job, what its first reservation said whose beginning is known
        self.promised: dict[str, Promise] = {}
        #: those of jobs that still wait
        self._open: dict[str, Promise] = {}

    def add(self, waiting: Waiting) -> None:
        self.backlog.add(waiting)

    def place(self, now: float) -> list[Placement]:
        self.backlog.settle(now, self.cluster.totals)
        placed = self.placer.place(_ALL, now)
        for one in placed:
            self._open.pop(one.job_id, None)
            self._outrank(one.waiting.priority.rank, one.node_id)
            limit = one.waiting.time_limit_seconds
            if limit is not None:
                self._ends[one.job_id] = now + limit + ENDING_SECONDS
        return placed

    def reserve(self, now: float) -> None:
        """As `duties.reserve` does it, at each event."""
        claims = self.placer.claims
        claims.reserve(self._lines.plan(self.backlog, self.cluster, claims, now, self._ends.get, {}))
        for claim in claims:
            self._outrank(claim.rank, claim.node_id)
        for claim in claims:
            if claim.job_id in self._open:
                self._open[claim.job_id].node_id = claim.node_id
            elif claim.starts_at is not None and claim.job_id not in self.promised:
                made = Promise(claim.rank, claim.node_id, now, claim.starts_at)
                self.promised[claim.job_id] = self._open[claim.job_id] = made

    def _outrank(self, rank: int, node_id: str) -> None:
        """Somebody got a place, or has one reserved: the less urgent who wait for the node stand back."""
        for promise in self._open.values():
            promise.is_outranked |= promise.node_id == node_id and promise.rank < rank

    def over(self, job_id: str) -> None:
        """A job's place is free."""
        self.cluster.release(job_id)
        self.backlog.discharge(job_id)
        self._ends.pop(job_id, None)

    def urgent(self) -> list[Waiting]:
        """The heads of those that wait and may take places."""
        if not self.preempts:
            return []
        return [queue.first(1)[0] for queue in self.backlog if queue.priority == Priority.CRITICAL]


@dataclass
class BestFit(Ours):
    """Who fits is placed, in the order of arrival; nobody has a priority or a share."""

    preempts: bool = False
    consolidates: bool = False

    def add(self, waiting: Waiting) -> None:
        super().add(waiting._replace(owner="", priority=Priority.NORMAL))

    def reserve(self, now: float) -> None:
        """It knows none."""


@dataclass
class Fifo(Ours):
    """Strictly in the order of arrival: who does not fit keeps everybody behind him waiting."""

    preempts: bool = False
    consolidates: bool = False

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
