"""How often the record is looked through for nodes that are long gone."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from broker.scheduler.duties import prune
from broker.scheduler.duties.prune import Prune


@pytest.fixture
def clock(monkeypatch):
    now = [10_000.0]
    monkeypatch.setattr(prune.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def looks(monkeypatch, clock):
    """When a node was looked for. The first look takes 30 s and fails, each other one 3 s, and finds one."""
    found: list[float] = []

    def prune_node(tx, age_seconds):
        found.append(clock[0])
        clock[0] += 30.0 if len(found) == 1 else 3.0
        if len(found) == 1:
            raise TimeoutError
        return True

    monkeypatch.setattr(prune.dependencies, "old_arrays", lambda *_: [])
    monkeypatch.setattr(prune.retention, "prune", lambda *_: 0)
    monkeypatch.setattr(prune.retention, "prune_arrays", lambda *_: 0)
    monkeypatch.setattr(prune.retention, "prune_node_events", lambda *_: 0)
    monkeypatch.setattr(prune.retention, "prune_node", prune_node)
    return found


def test_a_look_that_takes_long_or_fails_is_not_repeated_at_once(clock, looks):
    @contextmanager
    def turn():
        yield SimpleNamespace(tx=None, over=[])

    duty = Prune(SimpleNamespace(settings=SimpleNamespace(retention_days=90.0), turn=turn))
    end = clock[0] + 3600.0 + 1300.0
    with pytest.raises(TimeoutError):
        duty.run_once()
    while clock[0] < end:
        clock[0] += 1.0
        duty._rests_until = 0.0
        duty.run_once()
    first, second, third, fourth = looks
    assert second - first >= 3600.0
    assert third - second == pytest.approx(600.0, abs=2.0)
    assert fourth - third == pytest.approx(600.0, abs=2.0)
