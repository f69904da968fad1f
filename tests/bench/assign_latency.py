"""From submit() to the announcement that a job has a node, while jobs come, start and end all the time."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Mapping

import redis

from cyxwiz_tasks import Client
from tests.bench.declared_stack import dsn, scheduler, servers, told
from tests.bench.end_to_end_placement import DEMANDS
from tests.bench.full_record import fill
from tests.bench.playing_nodes import HEARD_KEY
from tests.bench.row import Row

NODES, SECONDS, WARM_UP_SECONDS = 1000, 60.0, 10.0
SUBMISSIONS_PER_SECOND = 100
_PATIENCE_SECONDS = 20.0


def measure(nodes: int = NODES, seconds: float = SECONDS) -> Iterator[Row]:
    """p99 in milliseconds. Jobs are sent at fixed moments, whatever became of those before them."""
    with servers() as environment:
        tokens = fill(dsn(environment), 0, nodes)
        ids = {f"node-{number}": node_id for number, node_id in enumerate(tokens)}
        with (
            told("beating_nodes", environment, tokens),
            scheduler(environment) as leader,
            Client(environment["CYXWIZ_BROKER_URL"]) as client,
        ):
            leader.ready(60)
            with told("playing_nodes", environment, ids) as players:
                _wait_until_heard(environment, 0)
                sent = _submit(client, seconds + WARM_UP_SECONDS)
                _wait_until_heard(environment, int((seconds + WARM_UP_SECONDS) * SUBMISSIONS_PER_SECOND))
                players.terminate()
                heard: dict[str, float] = json.loads(players.communicate(timeout=20)[0])
    yield _row(sent, heard, nodes)


def _wait_until_heard(environment: Mapping[str, str], count: int) -> None:
    """Until the players have heard of so many placements; after the deadline `_row` says what is missing."""
    broker, gives_up_at = redis.Redis.from_url(environment["CYXWIZ_BROKER_URL"]), time.monotonic() + _PATIENCE_SECONDS
    with broker:
        while int(broker.get(HEARD_KEY) or -1) < count and time.monotonic() < gives_up_at:
            time.sleep(0.05)


def _submit(client: Client, seconds: float) -> dict[str, float]:
    """When each job was sent, without the first ones."""
    import lab_jobs

    sent: dict[str, float] = {}
    began = time.monotonic()
    for number in range(int(seconds * SUBMISSIONS_PER_SECOND)):
        time.sleep(max(0.0, began + number / SUBMISSIONS_PER_SECOND - time.monotonic()))
        now = time.monotonic()
        resources = DEMANDS[number % len(DEMANDS)]
        handle = client.submit(lab_jobs.add.s(number, 1), resources=resources, wait=False)
        if now - began >= WARM_UP_SECONDS:
            sent[handle.id] = now
    return sent


def _row(sent: dict[str, float], heard: dict[str, float], nodes: int) -> Row:
    unheard = sent.keys() - heard.keys()
    assert not unheard, f"{len(unheard)} of {len(sent)} jobs have no node"
    waits = sorted((heard[job_id] - at) * 1000 for job_id, at in sent.items())
    return Row(
        "submit_to_assigned_p99",
        statistics.quantiles(waits, n=100)[98],
        "ms",
        target=50.0,
        lower_is_better=True,
        note=f"{nodes:,} nodes, {SUBMISSIONS_PER_SECOND} jobs a second, {len(waits):,} of them: "
        f"p50 {statistics.median(waits):.1f} ms, max {waits[-1]:.1f} ms; each ends after a second",
    )
