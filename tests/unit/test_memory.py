"""Jobs that wait for their time."""

from __future__ import annotations

import pytest

from broker.scheduler import memory
from broker.scheduler.backlog import Waiting
from broker.scheduler.limits import OwnerLimits
from broker.scheduler.memory import Memory
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority

JOB = Waiting("job", 1, Resources(), Priority.NORMAL)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(memory.time, "monotonic", lambda: now[0])
    return now


def test_a_job_is_admitted_when_its_time_has_come(clock):
    held = Memory((40.0, 30.0, 20.0, 10.0))
    held.wait(JOB, 101.0)
    assert (held.admit_due(), held.next_moment()) == (0, 101.0)
    clock[0] = 101.0
    assert held.admit_due() == 1
    assert "job" in held.backlog


def test_a_job_that_is_delayed_again_waits_for_its_later_time(clock):
    held = Memory((40.0, 30.0, 20.0, 10.0))
    held.wait(JOB, 101.0)
    assert held.stop_waiting("job")
    held.wait(JOB, 150.0)
    clock[0] = 120.0
    assert held.admit_due() == 0
    clock[0] = 150.0
    assert held.admit_due() == 1


def test_what_waits_for_its_time_counts_as_waiting(clock):
    held = Memory((40.0, 30.0, 20.0, 10.0), usual_limits=OwnerLimits(waiting=2))
    held.wait(JOB._replace(owner="ann"))
    held.wait(JOB._replace(job_id="later", owner="ann"), 150.0)
    assert held.too_many(["bob", "ann", "bob", "bob"]).keys() == {1, 3}
    assert "waiting: ann may have 2" in str(held.too_many(["ann"])[0])


def test_submissions_beyond_what_a_minute_allows_are_too_many(clock):
    held = Memory((40.0, 30.0, 20.0, 10.0), usual_limits=OwnerLimits(per_minute=2))
    assert held.too_many(["ann", "ann", "ann", "bob"]).keys() == {2}
    clock[0] += 30.0
    assert held.too_many(["ann", "ann"]).keys() == {1}
