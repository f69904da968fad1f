"""What projects are guaranteed of the cluster, and what they may use beyond it while others leave it idle.

The model is Kueue's cohort: all projects lend each other what they do not use. A project has its own amount of a
resource; of that it lends up to `lend`, and keeps the rest free for itself; beyond its own it borrows up to `borrow`.
A project about which nothing was said owns nothing, and borrows without a limit. A borrowed place is given back when
its owner wants it: `broker/scheduler/giving_back.py`. He does not take what another keeps instead, though it be free.

Pure: it counts. Whether a job fits on a node is the placer's question.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from broker.scheduler.shares import Taken, Totals


class Amounts(NamedTuple):
    gpus: int = 0
    cpus: int = 0

    def plus(self, other: Amounts, times: int = 1) -> Amounts:
        return Amounts(self.gpus + times * other.gpus, self.cpus + times * other.cpus)


class Quota(NamedTuple):
    """Limits that are None are none."""

    #: part of the cluster, in proportion, where projects share
    weight: float = 1.0
    gpus: int = 0
    cpus: int = 0
    lend_gpus: int | None = None
    lend_cpus: int | None = None
    borrow_gpus: int | None = None
    borrow_cpus: int | None = None

    @property
    def own(self) -> Amounts:
        return Amounts(self.gpus, self.cpus)

    @property
    def kept(self) -> Amounts:
        """What nobody else may use, even while it is idle."""
        return Amounts(_above(self.own.gpus, self.lend_gpus), _above(self.own.cpus, self.lend_cpus))

    @property
    def most(self) -> tuple[float, float]:
        """What it may use at most."""
        return _together(self.gpus, self.borrow_gpus), _together(self.cpus, self.borrow_cpus)


def _together(own: int, borrow: int | None) -> float:
    return float("inf") if borrow is None else own + borrow


def _above(own: int, lend: int | None) -> int:
    return 0 if lend is None else max(0, own - lend)


NO_QUOTA = Quota()


def amounts_of(taken: Taken) -> Amounts:
    """Of what a job holds, what quotas count: GPUs that it has for itself, and cores."""
    return Amounts(taken[0], taken[2])


class Quotas:
    """What each project holds, beside what it may. Without any quota, nothing is counted and everything may be."""

    def __init__(self) -> None:
        self._quotas: dict[str, Quota] = {}
        self._held: dict[str, Amounts] = {}
        #: of all projects: what they hold, what they keep and do not hold, what they borrow. Kept up as these change,
        #: since each placement asks for it once a kind of waiting job
        self._used = self._idle = self._borrowed = Amounts()
        #: by waiting job for which a borrowed place is being cleared: its project, and what it will hold. It is not
        #: lent again meanwhile, perhaps to the one that gives it back.
        self.promised: dict[str, tuple[str, Amounts]] = {}
        #: whether there is any
        self.active = False
        self.total = Amounts()

    def __iter__(self) -> Iterator[str]:
        """Projects that have a quota, or hold something while others have."""
        if not self.active:
            return iter(())
        return iter(sorted({*self._quotas, *(name for name, held in self._held.items() if any(held))}))

    def of(self, project: str) -> Quota:
        return self._quotas.get(project, NO_QUOTA)

    def set(self, project: str, quota: Quota) -> None:
        self._count(project, -1)
        self._quotas[project] = quota
        self._count(project, 1)
        self.active = True

    def remove(self, project: str) -> None:
        self._count(project, -1)
        self._quotas.pop(project, None)
        self._count(project, 1)
        self.active = bool(self._quotas)
        if not self.active:
            self.promised = {}  # from now on nobody would look whether it still is

    def held(self, project: str) -> Amounts:
        return self._held.get(project, Amounts())

    def hold(self, project: str, amounts: Amounts, count: int = 1) -> None:
        """So many jobs more hold this; fewer if negative."""
        self._count(project, -1)
        self._held[project] = self.held(project).plus(amounts, count)
        self._count(project, 1)

    def hold_only(self, held: Iterable[tuple[str, Amounts, int]]) -> None:
        """Set what all projects hold, in parts: project, amounts, how many jobs hold them."""
        for project in list(self._held):
            self.hold(project, self._held[project], -1)
        self._held.clear()
        for project, amounts, count in held:
            self.hold(project, amounts, count)

    def resize(self, totals: Totals) -> None:
        self.total = Amounts(totals.gpus, totals.cpus)

    def borrows(self, project: str) -> bool:
        """Whether it has nothing left of its own."""
        return self.active and not any(
            own > held for own, held in zip(self.of(project).own, self.held(project), strict=True)
        )

    def is_own(self, project: str, wanted: Amounts) -> bool:
        """Whether a job that wants this would stay within what the project owns, of what anybody owns."""
        quota, held = self.of(project), self.held(project)
        return any(wanted[at] and quota.own[at] for at in range(len(wanted))) and all(
            held[at] + wanted[at] <= quota.own[at] for at in range(len(wanted)) if wanted[at] and self.governed(at)
        )

    def governed(self, at: int) -> bool:
        """Whether anybody owns any of this resource; what nobody owns, nobody borrows."""
        return any(quota.own[at] for quota in self._quotas.values())

    def admits(self, project: str, wanted: Amounts) -> bool:
        """Whether a job that wants this may be placed now.

        Who wants his own waits until those who borrow have given back, rather than take what another keeps. Where
        nobody borrows, the quotas are more than there is, and the first to ask gets it.
        """
        quota, held = self.of(project), self.held(project)
        for at, amount in enumerate(wanted):
            if not amount:
                continue
            is_own = held[at] + amount <= quota.own[at]
            if not is_own and held[at] + amount > quota.most[at]:
                return False
            kept, free = self._idle[at], self.total[at] - self._used[at] - amount
            if kept > free:
                kept -= self._idle_of(project)[at]
            if self.promised and not is_own:
                kept += sum(amounts[at] for name, amounts in self.promised.values() if name != project)
            if not kept or kept <= free:
                continue
            if not is_own or self._borrowed[at] > self.borrowed(project)[at]:
                return False
        return True

    def supposing(self, changes: Iterable[tuple[str, Amounts, int]]) -> Quotas:
        """As it were if so many jobs more, or fewer, of these projects held this, and nothing were promised."""
        found = Quotas()
        found._quotas, found._held = dict(self._quotas), dict(self._held)
        found._used, found._idle, found._borrowed = self._used, self._idle, self._borrowed
        found.active, found.total = self.active, self.total
        for change in changes:
            found.hold(*change)
        return found

    def borrowed(self, project: str) -> Amounts:
        """How much it holds beyond its own."""
        quota, held = self.of(project), self.held(project)
        return Amounts(*(max(0, held[at] - quota.own[at]) for at in range(len(held))))

    def _idle_of(self, project: str) -> Amounts:
        """What it keeps for itself, and does not hold."""
        kept, held = self.of(project).kept, self.held(project)
        return Amounts(*(max(0, kept[at] - held[at]) for at in range(len(held))))

    def _count(self, project: str, times: int) -> None:
        """Count what a project holds, keeps and borrows as it is now; -1: not any more, since it is about to change."""
        self._used = self._used.plus(self.held(project), times)
        self._idle = self._idle.plus(self._idle_of(project), times)
        self._borrowed = self._borrowed.plus(self.borrowed(project), times)
