"""Statements find their rows by key, although their plans were made when the tables were empty."""

from __future__ import annotations

import re
import uuid

from sqlalchemy import text

from cyxwiz_tasks.states import AttemptState, JobState
from db import arrays, attempts, job_pages, jobs
from db.attempts import Ending
from tests.integration.record import new_job
from tests.integration.waiting import until

BATCHES, SIZE = 10, 50
READ = text(
    """
    SELECT relname, seq_tup_read, coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables
    WHERE relname IN ('jobs', 'attempts')"""
)


def test_the_rows_that_are_read_grow_with_the_work_alone(record):
    backlog = [answer.job_id for answer in record.accept(*(new_job() for _ in range(1000)))]
    for _ in range(BATCHES):
        ids = [answer.job_id for answer in record.accept(*(new_job() for _ in range(SIZE)))]
        places = record.assign(*ids)
        record.start(*places.values())
        endings = [
            Ending(place.job_id, place.token, place.node_id, AttemptState.COMPLETED, JobState.COMPLETED)
            for place in places.values()
        ]
        assert all(settled.committed for settled in record.do(attempts.end, record.epoch, endings))
    record.do(jobs.cancel_waiting, record.epoch, backlog[:10])
    record.engine.dispose()  # sessions hand in their statistics when they end

    def read():
        return {row[0]: (row[1], row[2]) for row in record.do(lambda tx: tx.execute(READ).all())}

    until(lambda: read()["jobs"][1] >= BATCHES * SIZE)
    for table, (scanned, fetched) in read().items():
        assert scanned == 0, table
        # Each job is looked up by five statements, and once more by a foreign key.
        assert fetched <= 10 * BATCHES * SIZE, table


def test_jobs_of_arrays_that_have_ended_are_not_read_by_a_new_leader(record):
    array_id = str(uuid.uuid4())
    members = record.accept(*(new_job(array_id=array_id, array_index=number) for number in range(200)))
    record.do(jobs.cancel_waiting, record.epoch, [answer.job_id for answer in members[2:]])
    with record.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE jobs"))
    plan = "\n".join(record.do(lambda tx: tx.execute(text(f"EXPLAIN (ANALYZE) {arrays._MEMBERS.text}")).scalars()))
    assert not re.findall(r"Rows Removed by .*: \d+", plan), plan


def test_jobs_that_have_ended_are_not_read_for_a_list_of_others(record):
    ended = record.accept(*(new_job() for _ in range(2000)))
    record.do(jobs.cancel_waiting, record.epoch, [answer.job_id for answer in ended])
    listed = JobState.PENDING, JobState.ASSIGNED, JobState.RUNNING, JobState.HELD
    ids = {state: record.in_state(state)[0] for state in listed}
    with record.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE jobs, attempts"))
    read = text("SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'jobs'")

    def find(tx, state):
        before = tx.scalar(read)  # of the session's transactions that it has not handed in
        return [job["id"] for job in job_pages.find(tx, states=[state])], tx.scalar(read) - before

    for state in listed:
        found, rows = record.do(find, state)
        assert found == [ids[state]]
        assert rows < 10, state
