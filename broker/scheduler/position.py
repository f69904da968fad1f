"""How many jobs are served before one, and why: the line as it would be worked off if all else stood still.

An owner moves back with each of his jobs that is placed. So of another owner's jobs as many come first as he can place
until he has had as much as this job's owner will have had when it is its turn, with jobs of his mean size. That is an
estimate: which of them fit is not asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from broker.scheduler.backlog import Backlog, Queue
from broker.scheduler.branch import Branch
from broker.scheduler.demand import demand_of
from broker.scheduler.fair_share import Account, FairShare
from broker.scheduler.shares import expected
from cyxwiz_tasks.states import Priority


class Ahead(NamedTuple):
    """Jobs that are served first."""

    #: of a higher priority
    higher_priority: int = 0
    #: of its own owner, accepted earlier
    earlier: int = 0
    #: of owners and projects that have had less: how many of each
    fair_share: tuple[tuple[Account, int], ...] = ()

    @property
    def jobs(self) -> int:
        return self.higher_priority + self.earlier + sum(count for _, count in self.fair_share)


def ahead_of(
    backlog: Backlog, priority: Priority, sequence: int | None = None, owner: str = "", project: str = ""
) -> Ahead:
    """Who is ahead of the job with this number; None: of one submitted now."""
    higher = sum(len(queue) for queue in backlog if queue.rank > priority.rank)
    branch = backlog.root.children.get(priority)
    if not isinstance(branch, Branch):
        return Ahead(higher)
    shares = backlog.shares
    own, parent = shares.account(project, owner), shares.account(project, None)
    line = branch.children.get(parent)
    owners = [child for child in line if isinstance(child, Branch)] if isinstance(line, Branch) else []
    earlier, share = _earlier(next((one for one in owners if one.account is own), None), sequence, shares)
    others = _others(owners, own, share, shares)
    share += sum(taken for *_, taken in others)
    others += _others(list(branch), parent, share, shares)
    return Ahead(higher, earlier, tuple((account, count) for account, count, _ in others))


def queues_ahead(
    backlog: Backlog, priority: Priority, sequence: int | None = None, owner: str = "", project: str = ""
) -> Iterator[tuple[Queue, float]]:
    """The same by kinds of work: so many of each queue's jobs are served first. Of those whose owner had less, as
    large a part of each of his queues.
    """
    ahead = dict(ahead_of(backlog, priority, sequence, owner, project).fair_share)
    own, waiting = backlog.shares.account(project, owner), Counter[Account]()
    for queue in backlog:
        if queue.priority == priority and (account := _served_first(queue, ahead)) is not None:
            waiting[account] += len(queue)
    for queue in backlog:
        if queue.rank > priority.rank:
            yield queue, len(queue)
        elif queue.priority == priority:
            if queue.account is own:
                yield queue, len(queue) if sequence is None else queue.count_before(sequence)
            elif (account := _served_first(queue, ahead)) is not None:
                yield queue, len(queue) * ahead[account] / waiting[account]


def _served_first(queue: Queue, ahead: Mapping[Account, int]) -> Account | None:
    """The queue's owner, or else its project, if it is one of these."""
    return next((account for account in (queue.account, queue.account.parent) if account in ahead), None)


def _earlier(line: Branch | None, sequence: int | None, shares: FairShare) -> tuple[int, float]:
    """An owner's jobs with lower numbers, and the share of the cluster that they would hold."""
    jobs, share = 0, 0.0
    for queue in line or ():
        count = len(queue) if sequence is None else queue.count_before(sequence)
        jobs += count
        share += count * _share(queue, shares)
    return jobs, share


def _others(branches: list[Branch], own: Account, share: float, shares: FairShare) -> list[tuple[Account, int, float]]:
    """Of the other projects, or owners of one, how many jobs are served before one whose own has got `share` by then;
    and what they would hold.
    """
    limit = shares.key(own) + share / own.weight
    found = []
    for branch in branches:
        account = branch.account
        if account is None or account is own or shares.key(account) > limit:
            continue
        jobs, total = _all_below(branch, shares)
        each = total / jobs
        count = jobs if each == 0 else min(jobs, int((limit - shares.key(account)) * account.weight / each) + 1)
        found.append((account, count, count * each))
    return found


def _all_below(branch: Branch, shares: FairShare) -> tuple[int, float]:
    jobs, share = 0, 0.0
    for child in branch:
        more, their = (
            _all_below(child, shares) if isinstance(child, Branch) else (len(child), len(child) * _share(child, shares))
        )
        jobs += more
        share += their
    return jobs, share


def _share(queue: Queue, shares: FairShare) -> float:
    return shares.share(expected(demand_of(queue.resources)))
