"""The next in line, and big jobs behind, get places reserved, so that who needs less does not pass them for ever."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, ClassVar

from broker.scheduler.claims import Claim
from broker.scheduler.duties.duty import Duty
from broker.scheduler.lines import Lines
from broker.scheduler.log_lines import line

if TYPE_CHECKING:
    from broker.scheduler.leader import Leader

log = logging.getLogger(__name__)


class Reserve(Duty):
    every_seconds: ClassVar[float] = 1.0

    def __init__(self, leader: Leader) -> None:
        super().__init__(leader)
        self._lines = Lines(leader.settings.reserve_after_seconds)

    def run_once(self) -> dict[str, int]:
        if not self.leader.placed_all:
            return {}
        memory, now = self.leader.memory, time.monotonic()
        claims = list(memory.claims)
        planned = self._lines.plan(memory.backlog, memory.cluster, memory.claims, now, memory.end_of, memory.start_by)
        before = {(claim.job_id, claim.node_id) for claim in claims if not claim.clearing}
        if before == {(claim.job_id, claim.node_id) for claim in planned}:
            memory.claims.reserve(planned)  # with what is known of its start by now
            return {}
        with self.leader.turn():
            memory.claims.reserve(planned)
        for claim in planned:
            if (claim.job_id, claim.node_id) not in before:
                log.info(_line(claim, now))
        return {"reserved": len(planned)}


def _line(claim: Claim, now: float) -> str:
    seconds = round(claim.starts_at - now) if claim.starts_at is not None else "unknown"
    return line("reserved", job=claim.job_id, node=claim.node_id, awaited=len(claim.awaited), starts_in=seconds)
