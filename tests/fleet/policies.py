"""What is compared: each policy takes what arrives and says what is placed now, on the product's own cluster model."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from broker.scheduler.backlog import Backlog, Waiting
from broker.scheduler.cluster import Cluster
from broker.scheduler.placement import Placement, Placer
from cyxwiz_tasks.states import Priority

_ALL = 1_000_000


@dataclass
class Ours:
    """The product's backlog and placement: priorities, fair share, the score; critical jobs take places."""

    cluster: Cluster
    preempts: bool = True

    def __post_init__(self) -> None:
        self.backlog = Backlog()
        self.placer = Placer(self.cluster, self.backlog)

    def add(self, waiting: Waiting) -> None:
        self.backlog.add(waiting)

    def place(self, now: float) -> list[Placement]:
        self.backlog.settle(now, self.cluster.totals)
        return self.placer.place(_ALL)

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


@dataclass
class Fifo(Ours):
    """Strictly in the order of arrival: who does not fit keeps everybody behind him waiting."""

    preempts: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.line: deque[Waiting] = deque()

    def add(self, waiting: Waiting) -> None:
        self.line.append(waiting._replace(owner="", priority=Priority.NORMAL))

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
