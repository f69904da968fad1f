"""A Celery consumer that takes tasks it has never imported: user code is imported in the job's own process alone."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from celery import Celery, bootsteps
from celery.app.trace import build_tracer
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from celery.worker.state import maybe_shutdown
from kombu.exceptions import OperationalError
from pydantic import ValidationError
from redis import RedisError

from cyxwiz_tasks.job_task import JobTask
from cyxwiz_tasks.protocol.controls import Stop
from cyxwiz_tasks.protocol.headers import Assignment
from cyxwiz_tasks.protocol.names import ASSIGNMENT_HEADER
from cyxwiz_tasks.protocol.reports import Ended
from cyxwiz_tasks.states import Cause
from workers.confirm import pause_seconds
from workers.executor import run
from workers.node import node_of
from workers.pool import current
from workers.registration import register

log = logging.getLogger(__name__)

#: of so many refused connections one is told of
_TELL_EVERY = 20


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

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Celery drops a message that was revoked or has expired: the scheduler must hear of it."""
        try:
            super()._announce_revoked(reason, terminated, signum, expired)
        except RedisError as error:
            log.warning("revoked job %s: Celery's backend could not be told: %s", self.id, error)
        try:
            given = self._assignment()
        except ValidationError:
            return
        ended = Ended(
            **given.identity,
            outcome="cancelled",
            cause=Cause.EXPIRED if expired else Cause.CANCELLED,
            message=f"{reason} before it started",
        )
        node_of(self.app).courier.deliver(ended)

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

    def after_return(self, *_: Any) -> None:
        """Celery has stored how the job ended, and sent what waited for that."""
        current.handover.told()


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
        self.refusals = 0
        self.loop = partial(_loop, vars(self)["loop"])
        node_of(self.app).consumer = self

    def update_strategies(self) -> None:
        """Called at each new connection: strategies hold the connection's event dispatcher."""
        self.strategies.clear()

    def call_soon_ack(self, p: Callable[..., None], *args: Any, **kwargs: Any) -> Any:
        """Called for each message that is acknowledged or rejected."""
        return super().call_soon_ack(partial(_acknowledge, p), *args, **kwargs)

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """A server that refuses answers at once, and so would Celery's own next try."""
        if self.refusals % _TELL_EVERY == 0:
            log.warning("the broker takes no connection (%s): trying again", exc)
        self.refusals += 1
        time.sleep(pause_seconds(self.refusals))

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        try:
            super().on_unknown_task(body, message, exc)
        except (OSError, OperationalError) as error:
            log.warning("a message for an unknown task could not be refused: %s", error)


def _loop(loop: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Celery's own. kombu stumbles over a connection that is closed while it reads: that is a lost one, no more."""
    try:
        loop(*args, **kwargs)
    except AttributeError as error:
        if not _is_of_closed_connection(error):
            raise
        raise ConnectionError(f"the connection to the broker was closed meanwhile ({error})") from error


def _acknowledge(acknowledge: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """On a connection that is closed by now, as where a node stops just after it lost one, it is in vain."""
    try:
        acknowledge(*args, **kwargs)
    except AttributeError as error:
        if not _is_of_closed_connection(error):
            raise
        log.info("a message was not acknowledged, for its connection is closed: nothing waits for that")


def _is_of_closed_connection(error: AttributeError) -> bool:
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames[-1][0].f_globals.get("__name__", "").startswith("kombu.transport."))


class Registration(bootsteps.StartStopStep):  # type: ignore[misc]
    """Registers the node at every new connection to the broker, before the node's queue is consumed."""

    requires = ("celery.worker.consumer.events:Events",)

    def start(self, consumer: NodeConsumer) -> None:
        node = node_of(consumer.app)
        if not node.registered.is_set():
            # An older incarnation's attempts are lost once the new one is known, so their ends go first.
            node.courier.wait_until_delivered(maybe_shutdown)
        register(node)
        consumer.refusals = 0
