"""When a waiting job will start, and on what that rests: every figure is worked out by hand."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from heapq import heapreplace

import pytest

from broker.scheduler.backlog import Waiting
from broker.scheduler.claims import ENDING_SECONDS
from broker.scheduler.estimate import Estimate, estimate
from broker.scheduler.history import Expected, History
from broker.scheduler.memory import Memory
from broker.scheduler.openings import openings, turn_at
from broker.scheduler.places import able
from cyxwiz_tasks.conditions import Applicant
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.settings import Settings
from cyxwiz_tasks.states import Priority
from db.durations import Took
from db.models import Cordon, NodeState
from tests.unit.fleet import T4, capability

ANN = Applicant("ann", "", Priority.NORMAL)
NOTHING = History([])
#: medians: 30 s of ann's "train", 50 s of ann, 50 s of everybody
TOOK = History([Took("train", "ann", s) for s in (10, 30, 50)] + [Took("eval", "ann", s) for s in (70, 90)])


class Site:
    """A memory whose nodes have T4s; what it is asked for are jobs of ann's with one GPU each."""

    def __init__(self, *gpus: int) -> None:
        self.memory = Memory(Settings().score_weights)
        for number, count in enumerate(gpus):
            self.memory.cluster.upsert_node(f"n{number}", f"n{number}", capability(*[T4] * count, slots=8), "1")
        self._number = 0

    def submit(self, limit: float | None = None, gpus: int = 1, priority: Priority = Priority.NORMAL) -> Waiting:
        self._number += 1
        job_id = f"job-{self._number}"
        waiting = Waiting(job_id, self._number, Resources(gpus=gpus), priority, "ann", time_limit_seconds=limit)
        self.memory.backlog.add(waiting)
        return waiting

    def run(self, limit: float | None = None, ago: float = 0.0, gpus: int = 1) -> None:
        """A job that was placed so many seconds ago."""
        self.submit(limit, gpus)
        (placement,) = self.memory.placer.place(1)
        self.memory.assigned(placement, self._number, 1).assigned_at -= ago

    def ask(self, history: History = NOTHING, waiting: Waiting | None = None, gpus: int = 1) -> Estimate:
        return estimate(self.memory, history, _named_train, Resources(gpus=gpus), ANN, waiting)


def _named_train(job_ids: list[str]) -> dict[str, str]:
    return dict.fromkeys(job_ids, "train")


def seconds_until(found: Estimate) -> float:
    assert found.start is not None, found.basis
    return found.start.timestamp() - time.time()


def test_places_on_a_node_open_as_those_there_end() -> None:
    site = Site(2)
    site.run()
    site.run()
    ((node, wanted),) = able(site.memory.cluster, Resources(gpus=1), ANN).some(site.memory.cluster, 0, 9)
    assert openings(node, wanted, {"job-1": 30.0, "job-2": 20.0}, 5.0) == [20.0, 30.0]
    assert openings(node, wanted, {"job-1": 30.0, "job-2": None}, 40.0) == [40.0]
    ((node, wanted),) = able(site.memory.cluster, Resources(gpus=2), ANN).some(site.memory.cluster, 0, 9)
    assert openings(node, wanted, {"job-1": 30.0, "job-2": 20.0}, 5.0) == [30.0]
    assert openings(node, wanted, {"job-1": 30.0}, 5.0) == []


def test_it_is_a_jobs_turn_once_those_before_it_have_had_theirs() -> None:
    assert [turn_at([20.0, 30.0], before, None) for before in (0, 1, 2)] == [20.0, 30.0, None]
    # Two places, from 0 and 25 on, and each before holds one for 10: 0 10 20 25 30 35 40 ...
    assert [turn_at([25.0, 0.0], before, 10.0) for before in range(7)] == [0, 10, 20, 25, 30, 35, 40]
    assert turn_at([0.0], 1_000_000, 60.0) == 60_000_000
    assert turn_at([], 0, 10.0) is None


def test_turns_are_those_of_a_queue_that_is_played_through() -> None:
    rng = random.Random(7)
    for _ in range(300):
        moments = sorted(float(rng.randrange(200)) for _ in range(rng.randint(1, 5)))
        each, before = float(rng.randint(1, 50)), rng.randrange(30)
        busy = list(moments)
        for _ in range(before):
            heapreplace(busy, busy[0] + each)
        assert turn_at(moments, before, each) == pytest.approx(busy[0])


def test_what_others_took_is_told_by_the_closest_kind_that_has_enough() -> None:
    assert TOOK.expected("ann", "train") == Expected(30, 'the median of the last 3 attempts of "train" of ann')
    assert TOOK.expected("ann", "eval") == Expected(50, "the median of the last 5 attempts of ann")
    assert TOOK.expected("bob", "train") == Expected(50, "the median of the last 5 attempts of everybody")
    # Who runs for 40 s already is one of those that take longer: 50, 70 or 90.
    assert TOOK.expected("ann", None, elapsed_seconds=40) == Expected(70, "the median of the last 5 attempts of ann")
    assert TOOK.expected("ann", "train", elapsed_seconds=50) is None
    assert NOTHING.expected("ann") is None


def test_where_there_is_room_it_starts_now() -> None:
    found = Site(2).ask()
    assert (round(seconds_until(found)), found.basis) == (0, "there is room now")
    assert str(found) == "Estimated start: now. Basis: there is room now."


def test_time_limits_say_when_a_place_opens() -> None:
    site = Site(1, 1)
    site.run(limit=600, ago=100)
    site.run(limit=900)
    found = site.ask()
    assert seconds_until(found) == pytest.approx(500 + ENDING_SECONDS, abs=2)
    assert found.basis == "the time limits of 1 attempt there"
    assert "UTC on" in str(found)
    assert "in 8 min 30 s. Basis: the time limits" in str(found)


def test_without_time_limits_what_others_took_does() -> None:
    site = Site(1, 1)
    site.run(ago=20)
    site.run(ago=40)
    found = site.ask(TOOK)
    # The first has 30 - 20 = 10 s left, the second 50 - 40.
    assert seconds_until(found) == pytest.approx(10, abs=2)
    assert 'the median of the last 3 attempts of "train" of ann, for ' in found.basis


def test_jobs_ahead_take_places_first_and_hold_them() -> None:
    site = Site(1)
    site.run(limit=100)
    site.submit(limit=300)
    site.submit(limit=500)
    last = site.submit()
    found = site.ask(waiting=last)
    assert seconds_until(found) == pytest.approx(100 + ENDING_SECONDS + 2 * 400, abs=2)
    assert found.basis == (
        "the time limits of 1 attempt there; 2 jobs in line before it for such a place, 6 min 40 s each by their "
        "time limits"
    )
    # Two GPUs ahead are two places for one, and what cannot run there is not before it.
    wide = Site(2)
    wide.run(limit=100, gpus=2)
    wide.submit(limit=300, gpus=2)
    wide.submit(limit=300, gpus=9)
    assert wide.ask(waiting=wide.submit()).basis.count("2 jobs in line before it") == 1


def test_it_says_that_a_start_by_cannot_be_met() -> None:
    site = Site(1)
    site.run(limit=3600)
    found, now = site.ask(), datetime.now(UTC)
    assert found.too_late(now + timedelta(hours=2)) == []
    assert "when it must have started: unless jobs end early, it is cancelled" in found.too_late(now)[0]
    assert Estimate(start=None, basis="").too_late(now) == []


def test_a_gang_starts_when_as_many_nodes_have_a_place() -> None:
    site = Site(2, 2, 2)
    for number in range(3):
        site.run(limit=100 * (number + 1), gpus=2)
    memory = site.memory
    found = estimate(memory, NOTHING, _named_train, Resources(gpus=1, nodes=2), ANN)
    assert seconds_until(found) == pytest.approx(200 + ENDING_SECONDS, abs=2)
    assert estimate(memory, NOTHING, _named_train, Resources(gpus=1, nodes=4), ANN).start is None


def test_where_nothing_is_known_there_is_no_estimate_and_it_says_why() -> None:
    site = Site(1)
    site.run(ago=5)
    found = site.ask()
    assert found.start is None
    assert str(found) == (
        "No estimate of its start: the 1 attempt there has no time limit, and nothing that has finished here took as "
        "long."
    )
    assert site.ask(History([Took("train", "ann", 0.001)] * 5)).start is None
    limited = Site(1)
    limited.run(limit=60)
    limited.submit()
    assert "no time limit, and nothing has finished here" in limited.ask(waiting=limited.submit()).basis
    for spoilt in ("state", "cordon"):
        away = Site(1)
        if spoilt == "state":
            away.memory.cluster.set_state("n0", NodeState.SUSPECT)
        else:
            away.memory.cluster.set_cordon("n0", Cordon.DRAINING)
        assert away.ask().basis == "no node that fits takes new work now"
