"""What it costs the scheduler that many nodes beat: its processor time, of one core."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psutil

from tests.acceptance.processes import ServiceProcess
from tests.bench.beating_nodes import BEATS_PER_SECOND
from tests.bench.declared_stack import dsn, scheduler, servers, told
from tests.bench.full_record import fill
from tests.bench.row import Row

NODES, SECONDS, SETTLED_SECONDS = 10_000, 40.0, 10.0


def measure(nodes: int = NODES, seconds: float = SECONDS) -> Iterator[Row]:
    """Percent of a core, with an attempt on each node."""
    with servers() as environment:
        tokens = fill(dsn(environment), 0, nodes, running=True)
        with told("beating_nodes", environment, tokens), scheduler(environment) as leader:
            leader.ready(120)
            time.sleep(SETTLED_SECONDS)
            yield _watched(leader, nodes, seconds)


def _watched(leader: ServiceProcess, nodes: int, seconds: float) -> Row:
    process, said = psutil.Process(leader.pid), len(leader.logs())
    before, began = _cpu_seconds(process), time.monotonic()
    time.sleep(seconds)
    share = (_cpu_seconds(process) - before) / (time.monotonic() - began)
    suspects, lost = (leader.logs()[said:].count(name) for name in ("node_suspect", "node_lost"))
    return Row(
        "scheduler_share_of_a_core_with_10000_beating_nodes",
        100 * share,
        "%",
        target=25.0,
        lower_is_better=True,
        note=f"{nodes:,} nodes, {BEATS_PER_SECOND} beats a second each; {suspects} called suspect, {lost} lost",
    )


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
