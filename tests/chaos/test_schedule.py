"""A seed says everything about a run's faults."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from tests.chaos.schedule import Kind, plan

KINDS = [
    Kind("kill_worker", "node", (0.0, 0.0)),
    Kind("stop_worker", "node", (1.0, 3.0)),
    Kind("redis_restart", "redis", (0.5, 1.0)),
    Kind("postgres_restart", "postgres", (0.5, 1.0)),
    Kind("kill_leader", "scheduler", (0.0, 0.0), needs=("postgres",)),
]


def test_the_same_seed_is_the_same_plan_and_another_is_not():
    assert plan(7, KINDS, 50, 100.0, 3) == plan(7, KINDS, 50, 100.0, 3)
    assert plan(7, KINDS, 50, 100.0, 3) != plan(8, KINDS, 50, 100.0, 3)


@pytest.mark.parametrize("seed", range(20))
def test_every_kind_comes_about_equally_often(seed):
    counts = Counter(one.kind for one in plan(seed, KINDS, 52, 300.0, 3))
    assert sum(counts.values()) == 52
    assert set(counts.values()) <= {10, 11}


@pytest.mark.parametrize("seed", range(20))
def test_faults_of_one_part_never_overlap(seed):
    kinds = {kind.name: kind for kind in KINDS}
    busy = defaultdict(list)
    for one in plan(seed, KINDS, 60, 60.0, 2):
        kind = kinds[one.kind]
        scope = f"node{one.choice % 2}" if kind.scope == "node" else kind.scope
        for part in (scope, *kind.needs):
            busy[part].append((one.at, one.at + one.seconds))
    for intervals in busy.values():
        intervals.sort()
        for (_, end), (begin, _) in pairwise(intervals):
            assert begin >= end


def test_they_come_in_the_order_of_their_times():
    times = [one.at for one in plan(3, KINDS, 40, 200.0, 3)]
    assert times == sorted(times)
    assert times[0] >= 8.0
