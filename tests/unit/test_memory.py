"""Jobs that wait for their time, and what attempts under way would lose."""

from __future__ import annotations

import pytest

from broker.scheduler import memory
from broker.scheduler.backlog import Waiting
from broker.scheduler.demand import demand_of
from broker.scheduler.duties.preempt import holders_of
from broker.scheduler.limits import OwnerLimits
from broker.scheduler.memory import Memory
from broker.scheduler.places import Wanted
from broker.scheduler.preemption import choose
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from tests.unit.fleet import T4, capability

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


def test_what_waits_elsewhere_is_counted_once_for_all_owners(monkeypatch, clock):
    held, looks = Memory((40.0, 30.0, 20.0, 10.0), usual_limits=OwnerLimits(waiting=1)), []
    held.wait(JOB._replace(owner="ann"), 150.0)
    look = held.dependencies.held
    monkeypatch.setattr(held.dependencies, "held", lambda: looks.append(1) or look())
    assert held.too_many(["ann", "bob", "eve", "bob"]).keys() == {0, 3}
    assert len(looks) == 1


def test_submissions_beyond_what_a_minute_allows_are_too_many(clock):
    held = Memory((40.0, 30.0, 20.0, 10.0), usual_limits=OwnerLimits(per_minute=2))
    assert held.too_many(["ann", "ann", "ann", "bob"]).keys() == {2}
    clock[0] += 30.0
    assert held.too_many(["ann", "ann"]).keys() == {1}


def running(memory, clock, **jobs):
    """Attempts of these jobs, by name what they ask for, each placed ten seconds after the one before it."""
    for number, (job_id, resources) in enumerate(jobs.items(), 1):
        clock[0] += 10.0
        memory.backlog.add(Waiting(job_id, number, Resources(**resources), Priority.NORMAL))
        (placement,) = memory.placer.place(1)
        if len(placement.members) > 1:
            memory.assigned_gang(placement, range(100, 100 + len(placement.members)), number=1)
        else:
            memory.assigned(placement, number, number=1)
    return memory.live


def site(*gpus):
    memory = Memory((40.0, 30.0, 20.0, 10.0))
    for number, count in enumerate(gpus):
        memory.cluster.upsert_node(f"n{number}", f"n{number}", capability(*[T4] * count), "1")
    return memory


def test_who_has_just_written_a_checkpoint_goes_before_a_younger_one_that_never_did(clock):
    memory = site(2)
    live = running(memory, clock, old={"gpus": 1}, young={"gpus": 1})
    clock[0] += 100.0

    def victims():
        wanted = Wanted(demand_of(Resources(gpus=1)), range(2))
        holders = holders_of(live, clock[0])
        return choose([(memory.cluster.node("n0"), wanted)], Priority.CRITICAL.rank, holders, {}).victims

    assert victims() == ("young",)
    live["old"].saved(clock[0] - 2.0)
    assert victims() == ("old",)
    clock[0] += 200.0
    live["young"].saved(clock[0])
    assert victims() == ("young",)


def test_with_a_gang_the_work_of_all_its_members_would_be_lost_since_the_checkpoint_of_rank_0(clock):
    live = running(site(1, 1, 1), clock, gang={"nodes": 3, "gpus": 1})
    clock[0] += 20.0
    assert [one.lost_seconds(clock[0]) for one in live.values()] == [60.0] * 3
    live["gang"].saved(clock[0] - 4.0)
    assert [one.lost_seconds(clock[0]) for one in live.values()] == [12.0] * 3
