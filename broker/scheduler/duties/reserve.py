"""The next in line, who fits nowhere, gets a place reserved, so that others who need less do not pass it for ever."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

from broker.scheduler.backlog import Queue, Waiting
from broker.scheduler.claims import Claim
from broker.scheduler.duties.duty import Duty
from broker.scheduler.log_lines import line
from broker.scheduler.places import able, taking_work
from broker.scheduler.reservations import Blocked, plan

if TYPE_CHECKING:
    from broker.scheduler.leader import Leader

log = logging.getLogger(__name__)

#: kinds of waiting jobs that one run looks at, and nodes for each, by turns: what it costs has a limit
_KINDS, _NODES = 16, 128


class Reserve(Duty):
    every_seconds: ClassVar[float] = 1.0

    def __init__(self, leader: Leader) -> None:
        super().__init__(leader)
        #: since when (monotonic) a job has been found to be the next and to fit nowhere
        self._blocked_since: dict[str, float] = {}
        #: where the next look at the nodes begins
        self._start = 0

    def run_once(self) -> dict[str, int]:
        if not self.leader.placed_all:
            return {}
        memory, now = self.leader.memory, time.monotonic()
        claims = {claim.key: claim for claim in memory.claims}
        planned = list(self._planned(now, claims))
        before = {(claim.job_id, claim.node_id) for claim in claims.values() if not claim.clearing}
        if before == {(claim.job_id, claim.node_id) for claim in planned}:
            memory.claims.reserve(planned)  # with what is known of its start by now
            return {}
        with self.leader.turn():
            memory.claims.reserve(planned)
        for claim in planned:
            if (claim.job_id, claim.node_id) not in before:
                log.info(_line(claim, now))
        return {"reserved": len(planned)}

    def _planned(self, now: float, claims: dict[str, Claim]) -> Iterator[Claim]:
        """A place for the next in line who has waited for long enough, and for such of others who could run on none of
        its nodes.

        Who cannot start in time keeps none from others: should those there end early, it may start all the same.
        """
        memory, cluster, since = self.leader.memory, self.leader.memory.cluster, self._blocked_since
        self._start += _NODES
        blocked = self._next()
        self._blocked_since = {waiting.job_id: since.get(waiting.job_id, now) for _, waiting in blocked}
        rows, contended = taking_work(cluster), set[int]()
        for queue, waiting in blocked:
            if now - self._blocked_since[waiting.job_id] < self.leader.settings.reserve_after_seconds:
                continue
            if len(contended) == len(rows):
                break  # nobody else could run on others
            fitting = able(cluster, waiting.resources, queue.applicant, rows)
            could = set(fitting.rows.tolist())
            if could and not contended & could:
                nodes = fitting.some(cluster, self._start, max(_NODES, 2 * waiting.resources.nodes))
                for claim in memory.claims.of(waiting.job_id):
                    nodes += fitting.one(cluster, claim.node_id)
                found = plan([Blocked(waiting, nodes)], memory.end_of, now, claims)
                if found and _is_too_late(found[0], memory.start_by.get(waiting.job_id)):
                    continue
                yield from found
            contended |= could

    def _next(self) -> list[tuple[Queue, Waiting]]:
        """The next of each kind, the most urgent first: after a turn that placed all it could, none of them fits.

        Of one priority, who has a reservation stays ahead: fair shares change from one moment to the next.
        """
        claims = self.leader.memory.claims
        queues = islice(self.leader.memory.backlog, _KINDS)
        found = [(queue, queue.find(queue.head[1])) for queue in queues if queue.head and not queue.is_held_back]
        found = [(queue, waiting) for queue, waiting in found if not claims.clears(waiting.job_id)]
        return sorted(found, key=lambda one: (-one[0].rank, one[1].job_id not in claims))


def _is_too_late(claim: Claim, start_by: float | None) -> bool:
    return start_by is not None and claim.starts_at is not None and claim.starts_at > start_by


def _line(claim: Claim, now: float) -> str:
    seconds = round(claim.starts_at - now) if claim.starts_at is not None else "unknown"
    return line("reserved", job=claim.job_id, node=claim.node_id, awaited=len(claim.awaited), starts_in=seconds)
