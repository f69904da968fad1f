"""Projects take back what they own and others have borrowed; who must go is asked to write a checkpoint first."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import ClassVar

from broker.scheduler import preempting
from broker.scheduler.backlog import Queue, Waiting
from broker.scheduler.duties.preempt import NODES, Preempt, holders_of, promise
from broker.scheduler.giving_back import Borrower, Wish, place_for
from broker.scheduler.preemption import Clearing
from broker.scheduler.quotas import Amounts
from db import quotas as recorded

#: jobs for which one run clears places: what it costs has a limit
_JOBS = 4


class GiveBack(Preempt):
    every_seconds: ClassVar[float] = 0.5

    def run_once(self) -> dict[str, int]:
        memory = self.leader.memory
        if not memory.shares.quotas.active:
            return {}
        self._start += NODES
        self._keep_promises()
        owners = [queue for queue in memory.backlog if self._may_take_back(queue)]
        # Whose job gave its place back often is looked up only where somebody might have to go.
        if not owners or not memory.live or not self.leader.placed_all or not self._clearings_for(owners, {}):
            return {}
        jobs = victims = 0
        with self.leader.turn() as turn:
            most = self.leader.settings.quota_preemptions
            often = [live.job_id for live in memory.live.values() if live.number > most and not live.rank]
            for waiting, clearing in self._clearings_for(owners, recorded.times_preempted(turn.tx, often)):
                reason = f"project {waiting.project} wants back what it owns, for job {waiting.job_id}"
                preempting.clear(turn, waiting, clearing, reason)
                memory.shares.quotas.promised[waiting.job_id] = waiting.project, waiting.amounts
                victims += len(clearing.victims)
                jobs += 1
            memory.backlog.reconsider_quotas()
        return {"jobs": jobs, "victims": victims}

    def _may_take_back(self, queue: Queue) -> bool:
        return (
            self.leader.memory.shares.quotas.is_own(queue.project, queue.amounts)
            and not queue.is_full
            and queue.head is not None
        )

    def _clearings_for(self, owners: list[Queue], preempted: dict[str, int]) -> list[tuple[Waiting, Clearing]]:
        memory = self.leader.memory
        promised, wanted = memory.claims.promised(), defaultdict[str, Amounts](Amounts)
        for project, amounts in memory.shares.quotas.promised.values():
            wanted[project] = wanted[project].plus(amounts)
        attempts, asked, found = self._attempts(preempted), set[str](), list[tuple[Waiting, Clearing]]()
        for queue in owners:
            nodes, members = self._nodes(queue), queue.resources.nodes
            for waiting in queue.first(2 * _JOBS):
                if memory.claims.clears(waiting.job_id):
                    continue
                amounts = queue.amounts.plus(wanted[queue.project])
                if len(found) == _JOBS or not memory.shares.quotas.is_own(queue.project, amounts):
                    break
                known = [
                    one._replace(holder=one.holder._replace(stopping=one.holder.stopping or one.of_job in asked))
                    for one in attempts
                ]
                wish, most = Wish(queue.project, queue.amounts, nodes, members), self.leader.settings.quota_preemptions
                clearing = place_for(wish, memory.shares.quotas, known, most, promised, wanted.items())
                if clearing is None or not clearing.awaited:
                    break
                found.append((waiting, clearing))
                promise(clearing, promised)
                asked.update(memory.live[name].job_id for name in clearing.victims)
                wanted[queue.project] = amounts
        return found

    def _keep_promises(self) -> None:
        """Of places that are being cleared, also by word of a leader before this one. The turn in which the last of
        them ends places the job; one that waits on has lost its place to somebody else's own, and asks again.
        """
        memory = self.leader.memory
        quotas, backlog = memory.shares.quotas, memory.backlog
        self._drop_vain_claims()
        cleared = [claim.job_id for claim in memory.claims if claim.clearing]
        waiting = [found for job_id in cleared if (found := backlog.find(job_id)) is not None]
        amounts = {one.job_id: (one.project, one.amounts) for one in waiting}
        kept = {job_id: wish for job_id, wish in amounts.items() if quotas.is_own(*wish)}
        if quotas.promised != kept:
            quotas.promised = kept
            backlog.reconsider_quotas()

    def _drop_vain_claims(self) -> None:
        """Of jobs that quotas do not admit although all who were asked to go for them have gone: these run again."""
        memory = self.leader.memory
        for claim in memory.claims:
            queue = memory.backlog.queue_of(claim.job_id) if claim.clearing else None
            awaited = (memory.live[name] for name in claim.awaited if name in memory.live)
            if queue is not None and not queue.admitted and not any(live.must_end for live in awaited):
                memory.claims.drop(claim.job_id)

    def _attempts(self, preempted: dict[str, int]) -> list[Borrower]:
        """All that are under way."""
        live = self.leader.memory.live
        return [
            Borrower(
                name,
                live[name].waiting.project,
                live[name].waiting.amounts,
                holder,
                preempted.get(live[name].job_id, 0),
                live[name].job_id,
            )
            for name, holder in holders_of(live, time.monotonic()).items()
        ]
