"""What `why` says of places that are kept."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from broker.scheduler.backlog import Waiting
from broker.scheduler.claims import claim_on
from broker.scheduler.keeping import sentences
from broker.scheduler.memory import Memory
from broker.scheduler.places import able
from cyxwiz_tasks.conditions import Applicant
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.settings import Settings
from cyxwiz_tasks.states import Priority
from tests.unit.fleet import T4, capability

BIG = Waiting("big", 1, Resources(gpus=2), Priority.NORMAL)
SMALL = Waiting("small", 2, Resources(gpus=1), Priority.NORMAL)


@pytest.fixture
def memory() -> Memory:
    """One GPU of two is kept for `big`."""
    made = Memory(Settings().score_weights)
    made.cluster.upsert_node("a", "gpu-1", capability(T4, T4), "1")
    made.backlog.add(Waiting("running", 0, Resources(gpus=1), Priority.NORMAL))
    (placement,) = made.placer.place(1)
    made.assigned(placement, 1, 1)
    made.backlog.add(BIG)
    made.backlog.add(SMALL)
    return made


def reserve(memory: Memory, starts_in_seconds: float | None) -> None:
    applicant = Applicant("", "", Priority.NORMAL)
    ((node, wanted),) = able(memory.cluster, BIG.resources, applicant).one(memory.cluster, "a")
    starts_at = None if starts_in_seconds is None else time.monotonic() + starts_in_seconds
    memory.claims.reserve([claim_on(node, BIG, wanted, ["running"], starts_at=starts_at)])
    memory.claims.settle(memory.backlog)


def test_it_says_from_when_and_whose_end_is_waited_for(memory: Memory) -> None:
    reserve(memory, 3600)
    at = datetime.now(UTC) + timedelta(hours=1)
    (said,) = sentences(memory, BIG)
    assert said.startswith("Node gpu-1 is kept for it from about ")
    assert f"{at:%d %B}" in said
    assert "when job running has to end at the latest" in said
    (other,) = sentences(memory, SMALL)
    assert other.startswith("It would fit on gpu-1, where the place is kept for job big from about ")
    assert "with a time_limit it could run there" in other


def test_it_says_that_nobody_knows_when(memory: Memory) -> None:
    reserve(memory, None)
    (said,) = sentences(memory, BIG)
    assert "once job running has ended" in said
    (other,) = sentences(memory, SMALL)
    assert other == "It would fit on gpu-1, where the place is kept for job big."


def test_where_nothing_is_kept_nothing_is_said(memory: Memory) -> None:
    assert sentences(memory, BIG) == []
