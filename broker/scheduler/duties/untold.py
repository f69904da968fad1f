"""Jobs that have ended in the record and not in Celery: their last word is said here.

A node's agent says it once it has the scheduler's word on a report, and may die in between; the result backend is
Redis, which may lose it. So every job that ended is looked at once, when its agent has had its time to speak, and all
of the last minutes once more when a leader comes and when Redis was away or was emptied.

A job whose submitter ignores results leaves nothing in the result backend, so nobody can see whether it was told: its
chain, if it has one, goes on by its agent alone.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

from broker.scheduler import telling
from broker.scheduler.duties.duty import Duty
from broker.scheduler.outbox import STATE_PREFIX
from db import outcomes
from db.outcomes import End

if TYPE_CHECKING:
    from broker.scheduler.leader import Leader

#: an agent that did not say a job's last word by then will not
_YOUNGEST_SECONDS = 10.0
#: a job that ended before is not looked at any more
OLDEST_SECONDS = 600.0
_BATCH = 1000
#: each with a result of up to `result_limit_bytes`
TOLD_AT_ONCE = 100
#: of one run; whatever is left, the next one looks at
_BUDGET_SECONDS = 0.05

# Celery writes the state first; a result may be long.
_UNSAID = """
local unsaid = {}
for _, id in ipairs(ARGV) do
  local head = redis.call('GETRANGE', KEYS[1] .. id, 0, 40)
  if not (head:find('"SUCCESS"') or head:find('"FAILURE"') or head:find('"REVOKED"')) then unsaid[#unsaid + 1] = id end
end
return unsaid
"""


def unsaid(leader: Leader, job_ids: list[str]) -> list[str]:
    """Those whose last word is not in the result backend and should be."""
    answer: Any = leader.redis.eval(_UNSAID, 1, STATE_PREFIX, *job_ids)
    if not answer:
        return []
    with leader.engine.connect() as tx:
        return outcomes.looked_at(tx, [job_id.decode() for job_id in answer])


def said_of(outcome: outcomes.Outcome) -> telling.Outcome:
    """An outcome of the record, for Celery."""
    return telling.Outcome(
        outcome.state,
        outcome.result,
        outcome.message or outcome.cause or "",
        outcome.exception,
        outcome.traceback,
        outcome.cause or "error",
    )


class Untold(Duty):
    every_seconds: ClassVar[float] = 1.0

    def __init__(self, leader: Leader) -> None:
        super().__init__(leader)
        #: the last job that was looked at; None: from the oldest on
        self._position: End | None = None

    def redis_is_back(self) -> None:
        self._position = None

    def run_once(self) -> dict[str, int]:
        # A state that has expired must not be taken for one that was never said.
        oldest_seconds = min(OLDEST_SECONDS, self.leader.settings.result_ttl_seconds / 2)
        gives_up_at, told = time.monotonic() + _BUDGET_SECONDS, 0
        while time.monotonic() < gives_up_at:
            with self.leader.engine.connect() as tx:
                ends = outcomes.ends(tx, self._position, oldest_seconds, _YOUNGEST_SECONDS, _BATCH)
            if ends:
                job_ids = unsaid(self.leader, [end.job_id for end in ends])
                for start in range(0, len(job_ids), TOLD_AT_ONCE):
                    told += self._tell(job_ids[start : start + TOLD_AT_ONCE])
                self._position = ends[-1]
            if len(ends) < _BATCH:
                break
        return {"told": told}

    def _tell(self, job_ids: list[str]) -> int:
        with self.leader.turn() as turn:
            turn.look_up(job_ids)
            found = outcomes.outcomes(turn.tx, [job_id for job_id in job_ids if turn.wants_result(job_id)])
            for outcome in found:
                turn.outbox.last_word(outcome.job_id, turn.messages.get(outcome.job_id), said_of(outcome))
        return len(found)
