"""The duties that clear places look at the nodes of a large cluster by turns."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from broker.scheduler import preempting
from broker.scheduler.backlog import Waiting
from broker.scheduler.duties.give_back import GiveBack
from broker.scheduler.duties.preempt import NODES, Preempt
from broker.scheduler.memory import Memory
from broker.scheduler.quotas import Amounts, Quota
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from tests.unit.fleet import T4, capability


def cluster_with_one_lesser(nodes: int, at: int) -> Memory:
    """Each node has one GPU and is taken, one of them by a job less urgent than all others."""
    memory = Memory((40.0, 30.0, 20.0, 10.0))
    for number in range(nodes):
        memory.cluster.upsert_node(f"n{number}", f"n{number}", capability(T4), "1")
    for number in range(nodes):
        priority, project = (Priority.LOW, "guest") if number == at else (Priority.CRITICAL, "own")
        wanted = Resources(gpus=1, node=f"n{number}")
        memory.backlog.add(Waiting(f"job-{number}", number, wanted, priority, project=project))
    for number, placement in enumerate(memory.placer.place(nodes)):
        memory.assigned(placement, number, number=1)
    assert len(memory.live) == nodes
    return memory


def leader_of(memory: Memory) -> SimpleNamespace:
    @contextmanager
    def turn():
        yield SimpleNamespace(tx=None, memory=memory)

    settings = SimpleNamespace(preempt_from="critical", preempt_limit=3, quota_preemptions=3)
    return SimpleNamespace(memory=memory, settings=settings, placed_all=True, turn=turn)


@pytest.fixture
def cleared(monkeypatch):
    found = []
    monkeypatch.setattr(preempting, "clear", lambda turn, waiting, clearing, *_: found.append(clearing.victims))
    return found


@pytest.mark.parametrize("at", [0, NODES])
def test_the_only_place_in_a_large_cluster_is_found(cleared, at):
    memory = cluster_with_one_lesser(2 * NODES, at)
    memory.backlog.add(Waiting("urgent", 9999, Resources(gpus=1), Priority.CRITICAL))
    duty = Preempt(leader_of(memory))
    for _ in range(2):
        duty.run_once()
    assert cleared == [(f"job-{at}",)]


@pytest.mark.parametrize("at", [0, NODES])
def test_the_only_borrower_in_a_large_cluster_is_found(cleared, at):
    memory = cluster_with_one_lesser(2 * NODES, at)
    memory.shares.set_quota("own", Quota(gpus=2 * NODES))
    memory.settle()
    memory.backlog.add(Waiting("owner", 9999, Resources(gpus=1), Priority.NORMAL, project="own"))
    duty = GiveBack(leader_of(memory))
    for _ in range(2):
        duty.run_once()
    assert cleared == [(f"job-{at}",)]


def test_nobody_goes_for_a_job_that_its_quota_holds_back_if_a_promise_to_others_is_not_kept(cleared):
    memory = Memory((40.0, 30.0, 20.0, 10.0))
    memory.cluster.upsert_node("n0", "n0", capability(T4, T4, T4, T4), "1")
    memory.settle()
    memory.backlog.add(Waiting("lesser", 0, Resources(gpus=1), Priority.NORMAL))
    [placement] = memory.placer.place(1)
    memory.assigned(placement, 0, number=1)
    memory.backlog.add(Waiting("urgent", 1, Resources(gpus=4), Priority.CRITICAL, project="y"))
    memory.shares.set_quota("x", Quota(gpus=2, lend_gpus=1))
    memory.shares.quotas.promised["gone"] = "x", Amounts(gpus=2)
    Preempt(leader_of(memory)).run_once()
    assert cleared == [], "x keeps one GPU, and the other three are not enough"
