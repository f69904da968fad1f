"""How long a scheduler takes from its start to its first placement where very much waits, and how much memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests.acceptance.processes import wait_until
from tests.bench.declared_stack import dsn, scheduler, servers, told
from tests.bench.full_record import fill
from tests.bench.row import Row

NODES, JOBS = 10_000, 1_000_000
_GB = 10**9


def measure(nodes: int = NODES, jobs: int = JOBS) -> Iterator[Row]:
    """Seconds and peak memory of a `cyxwiz scheduler` that finds this record; its nodes beat all the while."""
    with servers() as environment:
        tokens = fill(dsn(environment), jobs, nodes)
        with told("beating_nodes", environment, tokens), psycopg.connect(dsn(environment), autocommit=True) as record:
            began = time.monotonic()
            with scheduler(environment) as leader:
                leader.ready(300)
                led_seconds = time.monotonic() - began
                wait_until(lambda: record.execute("SELECT 1 FROM attempts LIMIT 1").fetchone(), 60, "a first attempt")
                seconds, peak = time.monotonic() - began, _peak_bytes(leader.pid)
    note = f"{nodes:,} nodes, {jobs:,} waiting, 1,000 kinds of work; led after {led_seconds:.1f} s"
    yield Row("start_up_to_first_placement", seconds, "s", 30.0, lower_is_better=True, note=note)
    yield Row("start_up_peak_memory", peak / _GB, "GB", 1.5, lower_is_better=True, note="of the scheduler, until then")


def _peak_bytes(pid: int) -> int:
    """The most memory that a process ever had at once."""
    words = Path(f"/proc/{pid}/status").read_text().split()
    return int(words[words.index("VmHWM:") + 1]) * 1024
