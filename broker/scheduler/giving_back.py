"""Whose borrowed place goes back to the project that owns it. Pure.

Only who borrows what is wanted may have to go, only as many of a project's as it borrowed, and nobody who has given his
place back often already. Of those, `preemption.choose` takes the fewest, the least urgent, and the least work. Where
the owner's job fits, but only into what others keep for themselves, some go as well whose places are on other nodes:
what quotas count is the whole cluster's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from broker.scheduler.node import Node
from broker.scheduler.places import Wanted
from broker.scheduler.preemption import Clearing, Holder, choose, smallest
from broker.scheduler.quotas import Amounts, Quotas

#: as a rank: above that of any job, so nobody of it goes for anybody
UNTOUCHED = 1 << 30


class Borrower(NamedTuple):
    """An attempt under way, or a member of a gang."""

    job_id: str
    project: str
    #: of a gang, what all of it holds
    amounts: Amounts
    holder: Holder
    #: how often it has given its place back
    preempted: int
    #: of a gang, the name of the first; all go together
    lead: str | None = None

    @property
    def of_job(self) -> str:
        return self.lead or self.job_id


class Wish(NamedTuple):
    """A waiting job's, whose project owns what it wants."""

    project: str
    amounts: Amounts
    #: those that take work and could ever run it
    nodes: Iterable[tuple[Node, Wanted]]
    #: of a gang; `amounts` are of all together
    members: int = 1


def place_for(
    wish: Wish,
    quotas: Quotas,
    attempts: Sequence[Borrower],
    most: int,
    places: Mapping[str, Sequence[Wanted]],
    promises: Iterable[tuple[str, Amounts]],
) -> Clearing | None:
    """The place to clear; None: nobody who may have to go stands in its way, or it would not be admitted even then.

    `places` are, by node, being cleared for others already; `promises` are what these will hold, with their projects.
    `most`: who has been preempted so often is left alone.
    """
    who = holders(quotas, wish.project, wish.amounts, attempts, most)
    clearing = choose(wish.nodes, UNTOUCHED, who, places, wish.members)
    if clearing is None:
        return None
    then = quotas.supposing((project, amounts, 1) for project, amounts in promises)
    return _until_admitted(clearing, wish, then, {one.job_id: one for one in attempts}, who)


def _until_admitted(
    clearing: Clearing, wish: Wish, quotas: Quotas, attempts: Mapping[str, Borrower], who: Mapping[str, Holder]
) -> Clearing | None:
    """With those who have to go besides, until quotas admit the job; None: they would not if all went."""
    if _left_by(clearing.awaited, attempts, quotas).admits(wish.project, wish.amounts):
        return clearing
    awaited = clearing.awaited.union(name for name, holder in who.items() if holder.stopping)
    left = _left_by(awaited, attempts, quotas)
    if left.admits(wish.project, wish.amounts):
        return clearing._replace(awaited=awaited)
    gone = {attempts[name].of_job for name in awaited}
    borrowers = [name for name, holder in who.items() if holder.rank < UNTOUCHED and attempts[name].of_job not in gone]
    borrowers.sort(key=lambda name: (*who[name].order, name))
    more = smallest(borrowers, lambda names: _left_by(names, attempts, left).admits(wish.project, wish.amounts))
    if not more:
        return None
    return clearing._replace(victims=(*clearing.victims, *more), awaited=awaited.union(more))


def _left_by(names: Iterable[str], attempts: Mapping[str, Borrower], quotas: Quotas) -> Quotas:
    """As it will be once these have gone; with any of its members, a gang goes."""
    jobs = {attempts[name].of_job: attempts[name] for name in names}
    return quotas.supposing((one.project, one.amounts, -1) for one in jobs.values())


def holders(
    quotas: Quotas, project: str, wanted: Amounts, attempts: Iterable[Borrower], most: int
) -> Mapping[str, Holder]:
    """For `preemption.choose` with the rank UNTOUCHED, on behalf of a job of `project` that wants this: who may go.

    `most`: who has been preempted so often is left alone.
    """
    found: dict[str, Holder] = {}
    counted = [at for at, amount in enumerate(wanted) if amount and quotas.governed(at)]
    left: dict[str, list[int]] = {}
    #: by job, since of a gang all go or none
    goes: dict[str, bool] = {}
    # What a project borrowed is counted down: from those who go anyway to those who lose most work.
    for one in sorted(attempts, key=lambda one: (not one.holder.stopping, *one.holder.order, one.job_id)):
        if one.of_job not in goes:
            excess = left.setdefault(one.project, list(quotas.borrowed(one.project)))
            goes[one.of_job] = one.holder.stopping or (
                one.project != project
                and one.preempted < most
                and any(one.amounts[at] and excess[at] > 0 for at in counted)
            )
            if goes[one.of_job]:
                left[one.project] = [have - amount for have, amount in zip(excess, one.amounts, strict=True)]
        found[one.job_id] = one.holder if goes[one.of_job] else one.holder._replace(rank=UNTOUCHED)
    return found
