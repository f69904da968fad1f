"""A person has looked at a held job and lets it try again: what was before does not count any more."""

from __future__ import annotations

import logging

from broker.scheduler.ending import say_again
from broker.scheduler.log_lines import line
from broker.scheduler.turn import Turn
from cyxwiz_tasks.errors import InvalidJob, NotFound
from db import job_pages, jobs, waiting_jobs

log = logging.getLogger(__name__)


def release(turn: Turn, job_id: str) -> None:
    """Put a held job back into the queue. Raises NotFound, and InvalidJob if it is not held, or stays so because this
    scheduler cannot read it.
    """
    if not jobs.release(turn.tx, turn.epoch, [job_id]):
        page = job_pages.get(turn.tx, job_id)
        if page is None:
            raise NotFound(f"there is no job {job_id}: `cyxwiz jobs` lists what there is")
        raise InvalidJob("id", f"job {job_id} is {page['state']}, not held", f"`cyxwiz why {job_id}` says more")
    for job in waiting_jobs.waiting(turn.tx, [job_id]):
        turn.memory.deadlines.expect(job_id, job.deadline_in_seconds)
        waiting = turn.memory.read(job)
        if waiting is None:
            raise InvalidJob("id", turn.memory.unreadable[job_id].replace(" ID`", f" {job_id}`"))
        turn.memory.wait(waiting)
    say_again(turn, job_id, "released", None)
    turn.counts["released"] += 1
    log.info(line("job_released", job=job_id))
