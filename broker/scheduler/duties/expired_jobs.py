"""Jobs that did not start in time end. (Those that wait for their time are admitted by the loop itself.)"""

from __future__ import annotations

from typing import ClassVar

from broker.scheduler.duties.duty import Duty
from broker.scheduler.ending import finish
from cyxwiz_tasks.states import Cause, JobState
from db import jobs
from db.jobs import EXPIRED_MESSAGE


class ExpiredJobs(Duty):
    every_seconds: ClassVar[float] = 0.25

    def run_once(self) -> dict[str, int]:
        memory = self.leader.memory
        if not memory.any_expired():
            return {}
        with self.leader.turn() as turn:
            expired = jobs.expire(turn.tx, turn.epoch)
            for job_id in expired:
                memory.stop_waiting(job_id)
                finish(turn, job_id, JobState.CANCELLED, Cause.EXPIRED, EXPIRED_MESSAGE)
        return {"expired": len(expired)}
