"""A Celery consumer that takes tasks it has never imported: user code is imported in the job's own process alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery import Celery, bootsteps
from celery.app.trace import build_tracer
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from kombu.exceptions import OperationalError
from pydantic import ValidationError
from redis import RedisError

from cyxwiz_tasks.job_task import JobTask
from cyxwiz_tasks.protocol import ASSIGNMENT_HEADER, REPORTS, Assignment, Ended, Stop
from cyxwiz_tasks.states import Cause
from workers.executor import run
from workers.node import node_of
from workers.pool import current
from workers.registration import register

log = logging.getLogger(__name__)


class NodeRequest(Request):  # type: ignore[misc]
    """A job's message, as Celery holds it from its arrival to its end."""

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End the job as cancelled, whatever the signal and whether it runs already.

        Celery itself would say REVOKED at once, and what the job had just reported would then be written over it. Here
        its attempt says so, when its processes are gone and the record has it.
        """
        try:
            given = self._assignment()
        except ValidationError:
            return  # it did not come through the scheduler, and fails for that
        node_of(self.app).attempts.stop(Stop(job=given.job, token=given.token, reason="revoked"))

    def revoked(self) -> bool:
        """Celery drops a revoked or expired message without a word: the scheduler must hear of it."""
        if not super().revoked():
            return False
        try:
            given = self._assignment()
            ended = Ended(
                **given.model_dump(include={"node", "incarnation", "job", "attempt", "token"}),
                outcome="cancelled",
                cause=Cause.CANCELLED,
                message="revoked or expired before it started",
            )
            node_of(self.app).redis.lpush(REPORTS, ended.model_dump_json())
        except (ValidationError, RedisError) as error:
            log.warning("revoked job %s could not be reported: %s", self.id, error)
        return True

    def _assignment(self) -> Assignment:
        return Assignment.model_validate(self.request_dict.get(ASSIGNMENT_HEADER))


class NodeTask(JobTask):
    """Stands for a task of the same name whose code is not here."""

    abstract = True
    Request = "workers.consumer:NodeRequest"

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the job in the process that the pool has taken for this thread."""
        return run(self, current.process, node_of(self.app), current.handover)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


def stand_in_task(app: Celery, name: str) -> NodeTask:
    """A task of this name in the application's registry, made if it is not there."""
    if name not in app.tasks:
        app.register_task(type(name, (NodeTask,), {"name": name, "__module__": __name__})())
    task: NodeTask = app.tasks[name]
    if not isinstance(task, NodeTask):
        # Celery's own tasks (celery.map, ...) would run inside the agent.
        raise KeyError(name)
    return task


class Strategies(dict[str, Callable[..., Any]]):
    """What to do with a message, by its task's name: filled when a name comes for the first time."""

    consumer: NodeConsumer

    def __missing__(self, name: str) -> Callable[..., Any]:
        app, consumer = self.consumer.app, self.consumer
        task = stand_in_task(app, name)
        task.__trace__ = build_tracer(name, task, app.loader, consumer.hostname, app=app)
        strategy: Callable[..., Any] = task.start_strategy(app, consumer)
        self[name] = strategy
        return strategy


class NodeConsumer(Consumer):  # type: ignore[misc]
    """Celery's consumer, registered with the scheduler before it takes anything."""

    Strategies = Strategies

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.strategies.consumer = self
        node_of(self.app).consumer = self

    def update_strategies(self) -> None:
        """Called at each new connection: strategies hold the connection's event dispatcher."""
        self.strategies.clear()

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        try:
            super().on_unknown_task(body, message, exc)
        except (OSError, OperationalError) as error:
            log.warning("a message for an unknown task could not be refused: %s", error)


class Registration(bootsteps.StartStopStep):  # type: ignore[misc]
    """Registers the node at every new connection to the broker, before the node's queue is consumed."""

    requires = ("celery.worker.consumer.events:Events",)

    def start(self, consumer: NodeConsumer) -> None:
        register(node_of(consumer.app))
