"""`db.new_jobs` in memory."""

from __future__ import annotations

from collections.abc import Sequence

from cyxwiz_tasks.states import JobState
from db.new_jobs import Accepted, NewJob
from tests.simulation.memory_db.tables import JobRow, Tx
from tests.simulation.memory_db.times import after, seconds_of


def accept(tx: Tx, epoch: int, jobs: Sequence[NewJob]) -> list[Accepted]:
    tables = tx.tables
    created = {}
    for position, job in enumerate(jobs):
        key = (job.owner, job.idempotency_key) if job.idempotency_key is not None else None
        if job.id in tables.jobs or (key is not None and key in tables.keys):
            continue
        created[position] = _insert(tx, epoch, job)
        if key is not None:
            tx.put(tables.keys, key, job.id)
    answers = []
    for position, job in enumerate(jobs):
        if position in created:
            row = created[position]
            answers.append(Accepted(job.id, job.id, JobState.PENDING, True, False, True, row.seq))
            continue
        by_id = tables.jobs.get(job.id)
        known = by_id or tables.jobs[tables.keys[job.owner, str(job.idempotency_key)]]
        same = known.new.digest == job.digest
        conflict = by_id is not None and not same
        answers.append(Accepted(job.id, known.id, JobState(known.state), False, conflict, same, known.seq))
    return answers


def _insert(tx: Tx, epoch: int, job: NewJob) -> JobRow:
    expiries = [seconds_of(job.expires_at), after(tx, job.start_by_seconds)]
    row = JobRow(
        job.id,
        tx.tables.next_seq(job.id),
        job,
        job.stored_envelope,
        accepted_at=tx.now,
        not_before=seconds_of(job.not_before),
        expires_at=min((moment for moment in expiries if moment is not None), default=None),
        deadline_at=after(tx, job.deadline_seconds),
    )
    tx.put(tx.tables.jobs, job.id, row)
    tx.put(tx.tables.pending, job.id, None)
    tx.log(epoch, "client", None, "pending", job_id=job.id)
    return row
