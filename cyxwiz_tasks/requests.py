"""Ask the scheduler: a JSON object into one of its lists, the answer out of a list of one's own."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import redis
from pydantic import BaseModel, ValidationError

from cyxwiz_tasks import errors
from cyxwiz_tasks.broker_connection import BLOCK_SECONDS, reached
from cyxwiz_tasks.errors import (
    CyxwizError,
    InvalidJob,
    JobRefused,
    ProtocolError,
    SchedulerUnavailable,
    ServerUnavailable,
)
from cyxwiz_tasks.ids import new_id
from cyxwiz_tasks.protocol.commands import Command
from cyxwiz_tasks.protocol.names import COMMANDS, QUERIES, reply_key
from cyxwiz_tasks.protocol.queries import Query, Reply
from cyxwiz_tasks.settings import settings

Answer = TypeVar("Answer", bound=BaseModel)

#: between two tries to reach a server that is away: a pause of random length, which grows up to the second of these
PAUSE_SECONDS = 0.2
PAUSE_CAP_SECONDS = 1.0


class Requests:
    """Commands and queries over one Redis. Safe for threads: each request waits on a list of its own."""

    def __init__(self, connection: redis.Redis, url: str) -> None:
        self.connection, self.url = connection, url
        #: whether this Redis has ever answered: its address is right then, and one that is away comes back
        self.answered = False

    def query(self, name: Any, /, timeout: float | None = None, **arguments: Any) -> Any:
        """The record's answer to one of the scheduler's queries; while it cannot read its record, it is asked again.

        Raises what the scheduler answered, SchedulerUnavailable, ServerUnavailable.
        """
        seconds = _seconds(timeout)
        deadline, unable, next_pauses = time.monotonic() + seconds, None, pauses()
        while True:
            reply_to = reply_key(new_id())
            reply = self._reply(QUERIES, Query(name=name, arguments=arguments, reply_to=reply_to), reply_to, deadline)
            if reply is None or reply.error_type != ServerUnavailable.__name__:
                return _value(reply or unable, seconds)
            unable, pause = reply, next(next_pauses)
            if time.monotonic() + pause > deadline:
                return _value(unable, seconds)
            time.sleep(pause)

    def command(self, command: Command, timeout: float | None = None) -> Any:
        """The leader's answer to a command. Raises what `query` raises."""
        reply_to, seconds = reply_key(new_id()), _seconds(timeout)
        request = command.model_copy(update={"reply_to": reply_to})
        return _value(self._reply(COMMANDS, request, reply_to, time.monotonic() + seconds), seconds)

    def wait(self, reply_to: str, form: type[Answer], deadline: float) -> Answer | None:
        """The next message on a reply list, or None once `deadline` of `time.monotonic()` has passed."""
        while (left := deadline - time.monotonic()) > 0:
            # Redis takes 0 for "for ever".
            found = self.connection.blpop([reply_to], timeout=max(0.01, min(left, BLOCK_SECONDS)))
            if found is not None:
                try:
                    return form.model_validate_json(found[1])
                except ValidationError as error:
                    raise ProtocolError(
                        f"the scheduler's answer cannot be read ({error.errors()[0]['msg']}): "
                        "use the same release of cyxwiz-tasks on both sides"
                    ) from None
        return None

    def _reply(self, key: str, request: BaseModel, reply_to: str, deadline: float) -> Reply | None:
        with reached(self.url):
            self.connection.lpush(key, request.model_dump_json())
            self.answered = True
            return self.wait(reply_to, Reply, deadline)


def pauses() -> Iterator[float]:
    """Seconds to wait before a server that is away is asked again: of random length, and growing."""
    ceiling = PAUSE_SECONDS
    while True:
        yield random.uniform(ceiling / 2, ceiling)  # noqa: S311 - no secret
        ceiling = min(2 * ceiling, PAUSE_CAP_SECONDS)


def _seconds(timeout: float | None) -> float:
    return settings().submit_timeout_seconds if timeout is None else timeout


def _value(reply: Reply | None, seconds: float) -> Any:
    """What was answered. Raises the error that the scheduler answered, SchedulerUnavailable for no answer."""
    if reply is None:
        raise SchedulerUnavailable(
            f"no scheduler answered within {seconds:g} s: see that `cyxwiz up` or `cyxwiz scheduler` runs"
        )
    if reply.error_type is not None or reply.error is not None:
        raise named_error(reply.error_type, reply.error)
    return reply.value


def named_error(error_type: str | None, message: str | None) -> CyxwizError:
    """The error that the scheduler named: a class of `cyxwiz_tasks.errors` and of nowhere else."""
    found = getattr(errors, error_type or "", None)
    if not isinstance(found, type) or not issubclass(found, CyxwizError):
        found = JobRefused
    if issubclass(found, InvalidJob):
        field, _, reason = (message or "").partition(": ")
        return found(field, reason)
    return found(message)
