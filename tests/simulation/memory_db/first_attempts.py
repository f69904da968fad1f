"""`db.first_attempts` in memory."""

from __future__ import annotations

from collections.abc import Sequence

from db.attempts import NewAttempt
from db.first_attempts import FirstAttempt
from db.new_jobs import NewJob
from tests.simulation.memory_db import attempts as memory_attempts
from tests.simulation.memory_db import new_jobs as memory_new_jobs
from tests.simulation.memory_db.tables import Tx, assert_current


def accept_placed(
    tx: Tx, epoch: int, jobs: Sequence[NewJob], attempts: Sequence[NewAttempt], lease_seconds: float
) -> dict[str, FirstAttempt]:
    assert_current(tx, epoch)
    if any(job.id in tx.tables.jobs for job in jobs):
        return {}
    seqs = {answer.id: answer.seq for answer in memory_new_jobs.accept(tx, epoch, jobs)}
    placed = memory_attempts.assign(tx, epoch, attempts, lease_seconds)
    return {job.id: FirstAttempt(placed[job.id].token, seqs[job.id]) for job in jobs}
