"""Two hundred hours of clusters in which everything goes wrong. `make simulate` runs as many more as it is told to."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cyxwiz_tasks.protocol.reports import Started
from tests.simulation.cluster import SimCluster
from tests.simulation.node import SimNode

SEEDS = 200


@pytest.mark.timeout(900)
def test_everything_holds_for_each_seed():
    """In processes of their own, where the order of sets is fixed: a seed that fails here fails again."""
    command = [sys.executable, "-m", "tests.simulation", "--seeds", str(SEEDS)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert f"{SEEDS} seeds" in done.stdout


def test_a_seed_is_replayed_to_the_letter():
    command = [sys.executable, "-m", "tests.simulation", "--seed", "3"]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=False).stdout for _ in range(2))
    assert len(first.splitlines()) > 100
    assert first == second


def test_everything_holds_where_no_word_of_a_start_is_heard(monkeypatch):
    """Beats and ends tell of it; jobs that run for longer than a minute would never end otherwise."""
    report = SimNode._report
    monkeypatch.setattr(SimNode, "_report", lambda node, word: isinstance(word, Started) or report(node, word))
    for seed in range(4):
        cluster = SimCluster(seed, gangs=0.0 if seed else 0.3)
        cluster.run()
        attempts = cluster.postgres.tables.attempts.values()
        assert [row.token for row in attempts if row.state == "completed" and row.started_at is None] == []
