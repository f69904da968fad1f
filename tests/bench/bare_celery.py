"""A Celery application without anything of ours: what the bench holds its figures against."""

from __future__ import annotations

import os
import time

from celery import Celery

app = Celery("bare", broker=os.environ.get("BARE_BROKER_URL"), backend=os.environ.get("BARE_BROKER_URL"))
app.conf.update(task_default_queue="bare", broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)


@app.task
def started_at() -> float:
    """The clock at the function's first line."""
    return time.monotonic()


@app.task
def nothing(number: int, text: str) -> None:
    pass
