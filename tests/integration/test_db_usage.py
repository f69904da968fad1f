"""What owners had of the cluster, as a new leader reads it."""

from __future__ import annotations

import math
import re

import pytest
from sqlalchemy import text

from cyxwiz_tasks.states import AttemptState, JobState
from db import usage
from tests.integration.record import new_job

HALF_LIFE = 3600.0
MEAN_LIFE = HALF_LIFE / math.log(2)
#: of which an attempt of the fixture has a quarter: one of four GPUs
TOTALS = (100, 4, 1 << 40, 1000, 1 << 40)
_MOVE = text(
    """
    UPDATE attempts SET assigned_at = statement_timestamp() - make_interval(secs => :began),
        ended_at = statement_timestamp() - make_interval(secs => :ended) WHERE token = :token"""
)


def attempt(record, began: float, ended: float | None, **job) -> None:
    """An attempt from so many seconds ago until so many seconds ago."""
    (answer,) = record.accept(new_job(**job))
    place = record.assign(answer.job_id)[answer.job_id]
    if ended is not None:
        record.end(place, AttemptState.COMPLETED, JobState.COMPLETED)
    record.do(lambda tx: tx.execute(_MOVE, {"began": began, "ended": ended, "token": place.token}))


def decayed(record, totals=TOTALS) -> dict[tuple[str, str], float]:
    return {(project, owner): past for project, owner, past in record.do(usage.decayed, totals, MEAN_LIFE)}


def test_what_was_held_is_summed_by_project_and_owner_and_counts_less_with_time(record):
    attempt(record, 2 * HALF_LIFE, HALF_LIFE, owner="ann", project="lab")
    attempt(record, HALF_LIFE, None, owner="ann", project="lab")
    attempt(record, HALF_LIFE, HALF_LIFE / 2, owner="ann")
    attempt(record, 30 * HALF_LIFE, 20 * HALF_LIFE, owner="bob")
    assert decayed(record) == {
        ("lab", "ann"): pytest.approx(0.25 * ((1 / 2 - 1 / 4) + (1 - 1 / 2)), rel=1e-3),
        ("", "ann"): pytest.approx(0.25 * (2**-0.5 - 2**-1), rel=1e-3),
    }


def test_a_shared_gpu_counts_by_its_memory(record):
    attempt(record, 20 * HALF_LIFE, None, owner="ann", resources={"gpus": 1, "shared": True})
    assert decayed(record, (100, 4, 8 << 30, 1000, 1 << 40)) == {("", "ann"): pytest.approx(1 / 8, rel=1e-3)}


def test_without_nodes_nobody_had_a_share(record):
    attempt(record, HALF_LIFE, None, owner="ann")
    assert decayed(record, (0, 0, 0, 0, 0)) == {("", "ann"): 0.0}


def test_attempts_that_ended_long_ago_are_not_read(record):
    answers = record.accept(*(new_job() for _ in range(200)))
    record.assign(*(answer.job_id for answer in answers))
    # The index on their ends learns of them while they have none, as it does whenever the table is vacuumed.
    record.do(lambda tx: tx.execute(text("SELECT brin_summarize_new_values('ix_attempts_ended_at')")))
    record.do(lambda tx: tx.execute(text("UPDATE attempts SET state = 'lost', ended_at = '2001-01-01'")))
    with record.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE attempts"))
    values = dict(zip(("slots", "gpus", "gpu_memory_bytes", "cpus", "ram_bytes"), TOTALS, strict=True))
    explain = text(f"EXPLAIN (ANALYZE) {usage._DECAYED.text}")
    plan = "\n".join(
        record.do(lambda tx: tx.execute(explain, values | {"mean_life": MEAN_LIFE, "oldest": 7 * MEAN_LIFE}).scalars())
    )
    assert not re.findall(r"Rows Removed by .*: \d+", plan), plan
