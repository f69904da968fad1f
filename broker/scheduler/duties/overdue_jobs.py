"""Jobs past their deadline: those that wait or are held fail at once, those that run are ended by their node.

The node knows the deadline and reports so. One that does not, because it is cut off or hangs, is told to stop, and its
attempt is taken back.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import ClassVar

from broker.scheduler.duties.duty import Duty
from broker.scheduler.ending import finish, lose
from broker.scheduler.turn import Turn
from cyxwiz_tasks.states import Cause, JobState
from db import jobs, waiting_jobs

_MESSAGE = "it did not end by its deadline: submit it again, with a later one"
#: beyond the grace period in which a job may stop by itself, what its node needs to end it and to say so
_PATIENCE_SECONDS = 5.0


class OverdueJobs(Duty):
    every_seconds: ClassVar[float] = 0.25

    def run_once(self) -> dict[str, int]:
        memory, settings = self.leader.memory, self.leader.settings
        overdue = memory.deadlines.look()
        if not overdue:
            return {}
        gone_before = time.monotonic() - settings.stop_grace_seconds - _PATIENCE_SECONDS
        waiting = [job_id for job_id in overdue if job_id not in memory.live]
        stuck = [job_id for job_id, since in overdue.items() if job_id in memory.live and since < gone_before]
        if not waiting and not stuck:
            return {}
        with self.leader.turn() as turn:
            failed = self._fail(turn, waiting)
            taken = lose(turn, stuck, Cause.DEADLINE, _MESSAGE, stop=True)
        return {"failed": failed, "taken_back": taken}

    def _fail(self, turn: Turn, job_ids: list[str]) -> int:
        """End jobs that no node runs; how many there were."""
        stories = {held.id: held.story for held in waiting_jobs.held(turn.tx, job_ids)}
        alike: dict[str, list[str]] = defaultdict(list)
        for job_id in job_ids:
            story = stories.get(job_id)
            alike[f"{_MESSAGE}. Its story until then: {story}" if story else _MESSAGE].append(job_id)
        failed = 0
        for message, ids in alike.items():
            for job_id in jobs.fail_waiting(turn.tx, turn.epoch, ids, Cause.DEADLINE, message):
                turn.memory.stop_waiting(job_id)
                finish(turn, job_id, JobState.FAILED, Cause.DEADLINE, message)
                failed += 1
        for job_id in job_ids:
            turn.memory.deadlines.forget(job_id)
        return failed
