"""The yardstick: Celery alone, with its own crash-safe settings, and the same task."""

from __future__ import annotations

import os

from celery import Celery

from tests.chaos.executions import note

#: after so long Celery takes a message that nobody has acknowledged for lost
VISIBILITY_SECONDS = 10


def make_app(url: str | None) -> Celery:
    made = Celery("plain", broker=url, backend=url)
    made.conf.update(
        task_default_queue="plain",
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        broker_transport_options={"visibility_timeout": VISIBILITY_SECONDS},
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
    )
    return made


app = make_app(os.environ.get("PLAIN_BROKER_URL"))


@app.task(name="plain.nothing")
def nothing(number: int, path: str) -> int:
    note(path, number)
    return number
