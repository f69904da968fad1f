"""Jobs that wait for their time."""

from __future__ import annotations

import pytest

from broker.scheduler import memory
from broker.scheduler.backlog import Waiting
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
