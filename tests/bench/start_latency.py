"""From submit(), which returns after a durable commit, to the first line of the job's function."""

from __future__ import annotations

import statistics
import time
from typing import Any

from cyxwiz_tasks import Client
from tests.bench import bare_celery
from tests.bench.row import Row

ROUNDS, WARM_UP = 150, 10


def measure(client: Client, preloaded: bool) -> Row:
    """p50 in milliseconds, against a bare Celery task; the two sides take turns.

    `preloaded`: whether the node has imported the job's module ahead, as Celery's own worker has. Else each job's
    process imports it, so that a changed file is seen by the next job.
    """
    import clock_job

    ours: list[float] = []
    bare: list[float] = []
    with bare_celery.task("started_at", client.broker_url) as started_at:

        def submit() -> Any:
            return client.submit(clock_job.started_at.s()).result(timeout=30)

        def delay() -> Any:
            return started_at.delay().get(timeout=30)

        for number in range(ROUNDS + WARM_UP):
            for call, found in ((submit, ours), (delay, bare)):
                began = time.monotonic()
                first_line = call()
                if number >= WARM_UP:
                    found.append((first_line - began) * 1000)
                # A warm process for the next job is ready again before it is sent: the row is about one job at a time.
                time.sleep(0.05)
    p99 = statistics.quantiles(ours, n=100)[98]
    return Row(
        "submit_to_first_line_p50" if preloaded else "submit_to_first_line_p50_and_import",
        statistics.median(ours),
        "ms",
        target=2.5 if preloaded else 3.0,
        yardstick=statistics.median(bare),
        lower_is_better=True,
        note=f"p99 {p99:.1f} ms, bare p99 {statistics.quantiles(bare, n=100)[98]:.1f} ms",
    )
