"""A scheduler in a thread of the test, and everything that a test asks of it, of Redis and of the record."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import SecretStr
from sqlalchemy import Engine

from broker.scheduler.command import run_scheduler
from cyxwiz_tasks.broker_connection import connect
from cyxwiz_tasks.celery_app import make_app
from cyxwiz_tasks.client import Client
from cyxwiz_tasks.envelope import envelope
from cyxwiz_tasks.ids import new_id
from cyxwiz_tasks.protocol.names import HEADER, INBOX
from cyxwiz_tasks.settings import Settings
from db import events, job_pages
from tests.integration.fake_node import FakeNode
from tests.integration.record import RULES, SCHEDULER_RULES, broken_rules
from tests.integration.waiting import until


class ControlPlane:
    """`with plane.scheduler(): ...` runs one; several may run at a time."""

    def __init__(self, broker_url: str, database_url: str, engine: Engine, **settings: Any) -> None:
        self.broker_url, self.engine = broker_url, engine
        given: dict[str, Any] = {"suspect_after_seconds": 0.5, "lease_seconds": 2.0}
        self.settings = Settings(
            broker_url=SecretStr(broker_url), database_url=SecretStr(database_url), **given | settings
        )
        self.redis = connect(broker_url)
        self.app = make_app(broker_url)
        self.client = Client(broker_url)
        self.nodes: list[FakeNode] = []
        #: duties that are meant to fail
        self.expected_failures: set[str] = set()
        self._failures = _Failures()
        logging.getLogger("broker.scheduler").addHandler(self._failures)

    @contextmanager
    def scheduler(self) -> Iterator[Scheduler]:
        running = Scheduler(self.settings)
        running.start()
        try:
            yield running
        finally:
            running.stop()
        if running.error is not None:
            raise running.error

    def node(self, name: str = "fake", **values: Any) -> FakeNode:
        """A node that is registered and beats."""
        node = FakeNode(connect(self.broker_url), name, **values)
        self.nodes.append(node)
        assert node.register().committed
        return node

    def submit(self, number: int = 1, **options: Any) -> str:
        """A durable job; its id."""
        return self.client.submit(self.signature(number), **options).id

    def signature(self, number: int = 1, **options: Any) -> Any:
        """A job's signature, as a task of the user's would make it."""
        return self.app.signature("tests.add", (number,), queue=INBOX, headers={HEADER: {"version": 1}}, **options)

    def redis_message(self, signature: Any, **options: Any) -> dict[str, Any]:
        """The message of a signature, as kombu leaves it in Redis, without sending it."""
        job_id = options.pop("task_id", None) or new_id()
        return dict(
            json.loads(
                envelope(self.app, signature.task, job_id, (signature.args, {}), {**signature.options, **options})
            )
        )

    def job(self, job_id: str) -> dict[str, Any]:
        with self.engine.connect() as tx:
            found = job_pages.get(tx, job_id)
        assert found is not None, f"no job {job_id}"
        return found

    def causes(self, job_id: str) -> list[tuple[str | None, str | None]]:
        """The moves of a job: the states that it came to, and why."""
        with self.engine.connect() as tx:
            return [(event["to_state"], event["cause"]) for event in events.of_job(tx, job_id) if event["to_state"]]

    def wait_for(self, job_id: str, state: str) -> dict[str, Any]:
        until(lambda: self.job(job_id)["state"] == state)
        return self.job(job_id)

    def celery_state(self, job_id: str) -> str:
        return str(self.app.AsyncResult(job_id).state)

    def broken_rules(self) -> dict[str, list[Any]]:
        with self.engine.connect() as tx:
            return broken_rules(tx, RULES | SCHEDULER_RULES)

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        self.client.close()
        self.app.close()
        self.redis.close()
        logging.getLogger("broker.scheduler").removeHandler(self._failures)
        unexpected = self._failures.duties - self.expected_failures
        assert not unexpected, f"duties failed: {unexpected}"


class _Failures(logging.Handler):
    """Duties that failed: the scheduler goes on, which must not hide it from a test."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.duties: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        words = dict(word.partition("=")[::2] for word in record.getMessage().split())
        if words.get("event") == "duty_failed":
            self.duties.add(words["duty"])


class Scheduler:
    """`run_scheduler` in a thread; `error` is what it raised."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.error: BaseException | None = None
        self._stop = threading.Event()
        # One that does not stop fails its test, and must not keep pytest from ending.
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive(), "the scheduler did not stop"

    def wait(self, seconds: float = 20.0) -> None:
        """Until it has stopped by itself."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the scheduler did not stop"

    def _run(self) -> None:
        try:
            run_scheduler(self.settings, self._stop)
        except BaseException as error:
            self.error = error
