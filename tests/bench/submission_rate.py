"""Durable submissions a second: `submit_many` returns when Postgres has committed every job."""

from __future__ import annotations

import statistics
import time

from cyxwiz_tasks import Client, Resources
from tests.bench import bare_celery
from tests.bench.row import Row

ROUNDS, OURS, BARE = 5, 3000, 1000


def measure(client: Client) -> Row:
    """Against a loop of `apply_async` on the same Redis, which is not durable; the two sides take turns."""
    import lab_jobs

    # No node fits: the row is about submitting, and running jobs would take the two cores for themselves.
    nowhere = {"resources": Resources(labels={"planet": "mars"})}
    ours: list[float] = []
    bare: list[float] = []
    with bare_celery.task("nothing", client.broker_url) as nothing:
        for _ in range(ROUNDS):
            jobs = [(lab_jobs.add.s(number, 1), nowhere) for number in range(OURS)]
            began = time.monotonic()
            client.submit_many(jobs)
            ours.append(OURS / (time.monotonic() - began))
            began = time.monotonic()
            for number in range(BARE):
                nothing.apply_async((number, "text"), queue="nobody")
            bare.append(BARE / (time.monotonic() - began))
            client.connection.delete("nobody")
    return Row(
        "durable_submissions_per_second",
        statistics.median(ours),
        "jobs/s",
        target=5.0,
        yardstick=statistics.median(bare),
        note="yardstick: apply_async in a loop, not durable",
    )
