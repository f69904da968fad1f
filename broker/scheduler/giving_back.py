"""Whose borrowed place goes back to the project that owns it. Pure.

Only who borrows what is wanted may have to go, only as many of a project's as it borrowed, and nobody who has given his
place back often already. Of those, `preemption.choose` takes the fewest, the least urgent, and the least work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from broker.scheduler.preemption import Holder
from broker.scheduler.quotas import Amounts, Quotas

#: as a rank: above that of any job, so nobody of it goes for anybody
UNTOUCHED = 1 << 30


class Borrower(NamedTuple):
    """An attempt under way."""

    job_id: str
    project: str
    amounts: Amounts
    holder: Holder
    #: how often it has given its place back
    preempted: int


def holders(
    quotas: Quotas, project: str, wanted: Amounts, attempts: Iterable[Borrower], most: int
) -> Mapping[str, Holder]:
    """For `preemption.choose` with the rank UNTOUCHED, on behalf of a job of `project` that wants this: who may go.

    `most`: who has been preempted so often is left alone.
    """
    found: dict[str, Holder] = {}
    left: dict[str, list[int]] = {}
    # What a project borrowed is counted down: from those who go anyway to those who lose most work.
    for one in sorted(
        attempts, key=lambda one: (not one.holder.stopping, one.holder.rank, one.holder.seconds, one.job_id)
    ):
        excess = left.setdefault(one.project, list(quotas.borrowed(one.project)))
        may_go = (
            one.project != project
            and one.preempted < most
            and not one.holder.stopping
            and any(wanted[at] and one.amounts[at] and excess[at] > 0 for at in range(len(wanted)))
        )
        if may_go or one.holder.stopping:
            left[one.project] = [have - amount for have, amount in zip(excess, one.amounts, strict=True)]
        found[one.job_id] = one.holder if may_go or one.holder.stopping else one.holder._replace(rank=UNTOUCHED)
    return found
