"""Who has had how much of the cluster: what decides whose turn it is among jobs of one priority.

A job's share of the cluster is its dominant share: the largest of its shares of slots, GPUs, GPU memory, cores and
memory (Ghodsi et al., "Dominant Resource Fairness", NSDI 2011). An account, which is a project or an owner within one,
has two figures, both shares of the whole cluster: `past`, the mean of what it held, in which each moment counts half as
much as one that is a half-life younger (as in HTCondor's effective user priority and Slurm's multifactor plugin), and
`present`, what it holds now. Whose (past + present) / weight is lowest goes next.

Past alone would give everything to a newcomer until he has caught up, which takes a half-life; present alone would
forget yesterday. Their sum is what the past will be if nothing changes, on the way there: of two owners who always have
jobs waiting, the one who had less gets more at first, by as much as he had less, and the difference halves every half
half-life. Forgotten is also that a long job puts its owner ahead, by half of it on average: against owners of short
ones he gains as much, at most, in each half-life / ln 2.

Pure: time is an argument, in seconds of any clock that does not go back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from broker.scheduler.limits import Limits, OwnerLimits
from broker.scheduler.quotas import Quota, Quotas, amounts_of
from broker.scheduler.shares import Taken, Totals, dominant_share

#: HTCondor's own default. A day: who had the cluster all day lets others go first tomorrow morning, and last week is
#: forgotten (a hundredth of it is left).
HALF_LIFE_SECONDS = 24 * 3600.0
#: an account that holds nothing is forgotten when less than this is left of its past
_FORGOTTEN = 1e-6
#: what is added to the standing of projects that borrow: they come after all others of the same priority
_AFTER_OWNERS = 1e6


class _Charge:
    """What some jobs of one owner hold alike. One object for all of them: a job costs no more than a reference."""

    __slots__ = ("account", "jobs", "share", "taken")

    def __init__(self, account: Account, taken: Taken, share: float) -> None:
        self.account, self.taken, self.share = account, taken, share
        self.jobs = 0


class Person:
    """An owner over all his projects."""

    __slots__ = ("accounts", "running", "running_limit")

    def __init__(self, running_limit: int | None) -> None:
        self.running, self.running_limit = 0, running_limit
        self.accounts: list[Account] = []

    @property
    def is_full(self) -> bool:
        """Whether as many of his jobs run as may."""
        return self.running_limit is not None and self.running >= self.running_limit


class Account:
    """A project, or an owner within one."""

    __slots__ = ("charges", "owner", "parent", "past", "person", "present", "project", "running", "weight")

    def __init__(self, project: str, owner: str | None, parent: Account | None, weight: float) -> None:
        #: `owner` is None for a project
        self.project, self.owner, self.parent, self.weight = project, owner, parent, weight
        self.past = self.present = 0.0
        #: attempts under way
        self.running = 0
        self.charges: dict[Taken, _Charge] = {}
        #: None for a project
        self.person: Person | None = None

    @property
    def standing(self) -> float:
        """Whose is lowest goes next."""
        return (self.past + self.present) / self.weight


class FairShare:
    """All accounts. What a job holds is charged to its owner and to its project."""

    def __init__(self, half_life_seconds: float = HALF_LIFE_SECONDS, limits: Limits | None = None) -> None:
        self.totals = Totals()
        self.limits, self.quotas = limits or Limits(), Quotas()
        #: of what is held now, so much later a share of 1/e still counts
        self.mean_life_seconds = half_life_seconds / math.log(2)
        self._accounts: dict[tuple[str, str | None], Account] = {}
        self._persons: dict[str, Person] = {}
        #: by job
        self._holders: dict[str, _Charge] = {}
        self._settled_at: float | None = None

    def __iter__(self) -> Iterator[Account]:
        return iter(self._accounts.values())

    def account(self, project: str, owner: str | None) -> Account:
        """An owner's within a project, or with None the project's own; opened if there is none."""
        found = self._accounts.get((project, owner))
        if found is None:
            parent = None if owner is None else self.account(project, None)
            weight = self.quotas.of(project).weight if owner is None else self.limits.of(owner).weight
            found = self._accounts[project, owner] = Account(project, owner, parent, weight)
            if owner is not None:
                found.person = self.person(owner)
                found.person.accounts.append(found)
        return found

    def person(self, owner: str) -> Person:
        """An owner over all projects."""
        found = self._persons.get(owner)
        if found is None:
            found = self._persons[owner] = Person(self.limits.of(owner).running)
        return found

    def set_limits(self, owner: str, limits: OwnerLimits) -> Person:
        """Other limits and another weight for an owner from now on."""
        self.limits.set(owner, limits)
        person = self.person(owner)
        person.running_limit = limits.running
        for account in person.accounts:
            account.weight = limits.weight
        return person

    def set_quota(self, project: str, quota: Quota | None) -> None:
        """Another quota and weight for a project from now on; None: it owns nothing."""
        if quota is None:
            self.quotas.remove(project)
        else:
            self.quotas.set(project, quota)
        self.account(project, None).weight = self.quotas.of(project).weight
        self.quotas.resize(self.totals)
        self.quotas.hold_only(
            (account.project, amounts_of(charge.taken), charge.jobs)
            for account in self._accounts.values()
            for charge in account.charges.values()
        )

    def key(self, account: Account) -> float:
        """Whose is lowest goes next: who has had least; of projects, those with something of their own left first."""
        if account.owner is None and self.quotas.borrows(account.project):
            return account.standing + _AFTER_OWNERS
        return account.standing

    def share(self, taken: Taken) -> float:
        """The dominant share of the cluster as it is now."""
        return dominant_share(taken, self.totals)

    def take(self, job_id: str, account: Account, taken: Taken) -> None:
        """An owner's job holds this from now on; if it held something before, not any more."""
        if job_id in self._holders:
            self.release(job_id)
        charge = account.charges.get(taken)
        if charge is None:
            charge = account.charges[taken] = _Charge(account, taken, self.share(taken))
        self._holders[job_id] = charge
        charge.jobs += 1
        account.running += 1
        account.present += charge.share
        if account.person is not None:
            account.person.running += 1
        if self.quotas.active:
            self.quotas.promised.pop(job_id, None)
            self.quotas.hold(account.project, amounts_of(taken))
        if account.parent is not None:
            account.parent.running += 1
            account.parent.present += charge.share

    def release(self, job_id: str) -> Account | None:
        """A job holds nothing any more. Returns whose it was; None: it held nothing."""
        charge = self._holders.pop(job_id, None)
        if charge is None:
            return None
        charge.jobs -= 1
        if not charge.jobs:
            del charge.account.charges[charge.taken]
        if charge.account.person is not None:
            charge.account.person.running -= 1
        if self.quotas.active:
            self.quotas.hold(charge.account.project, amounts_of(charge.taken), -1)
        account: Account | None = charge.account
        while account is not None:
            account.running -= 1
            # Rounding errors must not pile up.
            account.present = account.present - charge.share if account.running else 0.0
            account = account.parent
        return charge.account

    def remember(self, pasts: Iterable[tuple[str, str, float]]) -> None:
        """Set what owners had: project, owner, mean share."""
        for project, owner, past in pasts:
            account: Account | None = self.account(project, owner)
            while account is not None:
                account.past += past
                account = account.parent

    def settle(self, now: float, totals: Totals) -> None:
        """Let time pass: what was held since the last call becomes past. From now on the cluster has these totals."""
        elapsed = 0.0 if self._settled_at is None else max(0.0, now - self._settled_at)
        self._settled_at = now
        kept = math.exp(-elapsed / self.mean_life_seconds)
        for account in self._accounts.values():
            account.past = account.past * kept + account.present * (1 - kept)
        if totals != self.totals:
            self._resize(totals)

    def _resize(self, totals: Totals) -> None:
        self.totals = totals
        self.quotas.resize(totals)
        for account in self._accounts.values():
            account.present = 0.0
        for account in self._accounts.values():
            for charge in account.charges.values():
                charge.share = self.share(charge.taken)
                account.present += charge.jobs * charge.share
            if account.parent is not None:
                account.parent.present += account.present

    def forget(self, needed: set[Account]) -> None:
        """Drop accounts that hold nothing and have hardly a past, except those that are needed and their projects."""
        needed |= {account.parent for account in needed if account.parent is not None}
        for key, account in list(self._accounts.items()):
            if account.running or account.past > _FORGOTTEN or account in needed:
                continue
            del self._accounts[key]
            if account.person is not None and account.owner is not None:
                account.person.accounts.remove(account)
                if not account.person.accounts:
                    del self._persons[account.owner]
