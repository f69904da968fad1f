"""One short run of a fixed seed, in every test run; `make chaos` is the long one."""

from __future__ import annotations

import pytest

from tests.chaos.checker import describe, judge
from tests.chaos.history import read_history
from tests.chaos.run import Order, run_chaos

#: of every part of the stack one or two; each of them strikes within moments
KINDS = (
    *("kill_worker", "kill_job", "freeze_worker_briefly", "terminate_worker", "agent_dies_after_ended"),
    *("kill_leader", "scheduler_dies_after_commit", "scheduler_dies_before_commit", "unknown_commit"),
    *("redis_killed", "redis_emptied", "postgres_restart_immediate", "leader_sessions_terminated"),
    *("link_reset_burst", "partition_briefly", "foreign_messages"),
)


@pytest.mark.slow
@pytest.mark.timeout(300)  # a minute, on a machine that has nothing else to do
def test_sixty_jobs_under_twelve_faults(server_folder):
    order = Order(seed=11, jobs=60, faults=12, seconds=30.0, settle_seconds=45.0, only=KINDS)
    verdict = judge(read_history(run_chaos(order, server_folder / "run")))
    assert verdict.word == "pass", describe(verdict)
