"""A Celery application without anything of ours: what the bench holds its figures against."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from celery import Celery, Task


def make(broker_url: str | None) -> Celery:
    made = Celery("bare", broker=broker_url, backend=broker_url, set_as_current=False)
    made.conf.update(
        task_default_queue="bare", broker_connection_retry_on_startup=True, worker_hijack_root_logger=False
    )

    @made.task(name="started_at", shared=False)  # type: ignore[untyped-decorator]
    def started_at() -> float:
        """The clock at the function's first line."""
        return time.monotonic()

    @made.task(name="nothing", shared=False, ignore_result=True)  # type: ignore[untyped-decorator]
    def nothing(number: int, text: str) -> None:
        pass

    return made


@contextmanager
def task(name: str, broker_url: str) -> Iterator[Task]:
    """One of its tasks, in an application of its own: an older one keeps its connections to the servers of its row."""
    app = make(broker_url)
    try:
        yield app.tasks[name]
    finally:
        app.close()


#: what `celery worker -A tests.bench.bare_celery` finds
app = make(os.environ.get("BARE_BROKER_URL"))
