"""The last word on a job, said as a Celery worker would have: its state, and to whoever waits for it in Celery.

A node's Celery worker says the last word on what it ran, after the record has it. Where no node does (the job waited,
its node is gone, its agent was started anew between the end and the word), the scheduler speaks: through Celery's own
tracer and backend, which publish the next link of a chain, count a part of a chord and call callbacks and errbacks.

Saying it twice does little harm, but some: a link that is no part of a chain runs once more. So a job whose state is
final in the result backend already is left alone, and of a crash between the two the links are published first.
"""

from __future__ import annotations

import base64
import json
import logging
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import redis
from celery import Celery
from celery.app.task import Context
from celery.app.trace import build_tracer
from celery.states import READY_STATES

from broker.scheduler.log_lines import line
from cyxwiz_tasks.errors import JobFailed
from cyxwiz_tasks.states import JobState
from db.job_messages import StoredMessage

log = logging.getLogger(__name__)

#: Celery's names for what may wait for a job's end
_WAITERS = ("chord", "chain", "callbacks", "errbacks")


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `state` is completed, failed or cancelled."""

    state: JobState
    #: of a completed job: what its function returned
    result: Any = None
    #: why it failed, or was cancelled
    message: str = ""
    #: of a failed job: the module and class of the exception that it raised, where it raised one
    exception: str | None = None
    traceback: str | None = None
    cause: str = "error"

    @property
    def error(self) -> Exception:
        """The exception that `AsyncResult.get()` raises for a failed job: its own, or JobFailed."""
        module, _, name = (self.exception or "").rpartition(".")
        if not module:
            return JobFailed(self.message, cause=self.cause)
        return _class_of(module, name)(self.message.removeprefix(f"{name}: "))


@lru_cache(maxsize=256)
def _class_of(module: str, name: str) -> type[Exception]:
    """A class that Celery stores under a user's name: the user's own is not here."""
    return type(name, (Exception,), {"__module__": module})


@dataclass(frozen=True)
class LastWord:
    """`request`: what Celery's tracer and backend look at."""

    outcome: Outcome
    request: dict[str, Any]


def awaited(message: StoredMessage, outcome: Outcome) -> LastWord | None:
    """What Celery itself must say because a chord, a chain, a callback or an errback waits; None: a state is enough."""
    try:
        raw = base64.b64decode(message.body) if _is_base64(message) else message.body.encode()
        args, kwargs, embedded = json.loads(raw)
        waiters = {name: embedded.get(name) for name in _WAITERS}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    if not any(waiters.values()):
        return None
    return LastWord(outcome, {"delivery_info": {}} | message.headers | waiters | {"args": args, "kwargs": kwargs})


def _is_base64(message: StoredMessage) -> bool:
    return bool(message.properties.get("properties", {}).get("body_encoding") == "base64")


def tell(app: Celery, words: deque[LastWord]) -> None:
    """Say these words, with round trips of their own, and take them out as they are said.

    Raises redis.RedisError if Redis is away; the words that are left are still to be said.
    """
    while words:
        try:
            _tell(app, words[0])
        except redis.RedisError:
            raise
        except Exception as failure:
            # A callback of the user's that cannot be called must not stop the scheduler; the record has the job's end.
            log.warning(line("callbacks_failed", job=words[0].request.get("id"), error=type(failure).__name__))
        words.popleft()


def _tell(app: Celery, word: LastWord) -> None:
    outcome, fields = word.outcome, word.request
    job_id, store = fields["id"], not fields.get("ignore_result")
    if store and app.backend.get_state(job_id) in READY_STATES:
        return
    if outcome.state == JobState.COMPLETED:
        _succeed(app, fields, outcome.result)
    elif outcome.state == JobState.FAILED:
        request = Context(fields)
        app.backend.mark_as_failure(job_id, outcome.error, outcome.traceback, request=request, store_result=store)
    else:
        app.backend.mark_as_revoked(job_id, outcome.message, request=Context(fields), store_result=store)


def _succeed(app: Celery, fields: dict[str, Any], result: Any) -> None:
    """Let Celery's tracer run a stand-in that returns what the job returned."""
    attributes = {"name": fields["task"], "__module__": __name__, "run": lambda self, *args, **kwargs: result}
    task = type("StandIn", (app.Task,), attributes)()
    task.bind(app)
    build_tracer(task.name, task, app=app)(fields["id"], fields["args"], fields["kwargs"], fields)
