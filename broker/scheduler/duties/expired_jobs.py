"""Jobs that did not start in time end. (Those that wait for their time are admitted by the loop itself.)"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from broker.scheduler.duties.duty import Duty
from broker.scheduler.ending import finish
from cyxwiz_tasks.states import Cause, JobState
from db import jobs
from db.jobs import EXPIRED_MESSAGE

if TYPE_CHECKING:
    from broker.scheduler.leader import Leader

#: while jobs have a moment, the record is asked so often at least: one of them may be over by its clock alone, or have
#: been of an attempt that was lost before it started
_LOOK_SECONDS = 10.0


class ExpiredJobs(Duty):
    every_seconds: ClassVar[float] = 0.25

    def __init__(self, leader: Leader) -> None:
        super().__init__(leader)
        self._look_at = 0.0

    def run_once(self) -> dict[str, int]:
        memory, now = self.leader.memory, time.monotonic()
        if not memory.any_expired() and (now < self._look_at or not memory.start_by):
            return {}
        with self.leader.turn() as turn:
            expired = jobs.expire(turn.tx, turn.epoch)
            for job_id in expired:
                memory.stop_waiting(job_id)
                finish(turn, job_id, JobState.CANCELLED, Cause.EXPIRED, EXPIRED_MESSAGE)
        # The record gives some at a time: there may be more.
        self._look_at = 0.0 if expired else now + _LOOK_SECONDS
        return {"expired": len(expired)}
