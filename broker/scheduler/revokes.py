"""Celery's own `revoke`, from Flower, `AsyncResult.revoke()` or `celery control`: heard here, done as our cancel.

Celery broadcasts it to workers, and a worker only knows the tasks that reached it: a job that still waits in the
scheduler would never hear of it. What is heard goes into the list of commands, so that it is handled like any other.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import redis
from celery import Celery
from kombu.connection import Connection
from kombu.entity import Exchange, Queue
from kombu.messaging import Consumer

from cyxwiz_tasks.protocol.message import Message
from cyxwiz_tasks.protocol.names import COMMANDS

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_PAUSE_SECONDS = 1.0
#: ids in one broadcast; Celery's own workers remember no more revoked ids than this
_LIMIT = 50_000


class Revoke(Message):
    """What Celery's broadcast says, as a command to ourselves. Without `terminate` a running job runs on."""

    kind: Literal["revoke"] = "revoke"
    jobs: tuple[str, ...]
    terminate: bool = False


class RevokeListener(threading.Thread):
    """Subscribes to Celery's control exchange. Broadcasts while Redis is away are lost, as they are for workers."""

    def __init__(self, app: Celery, connect: Callable[[], redis.Redis]) -> None:
        super().__init__(name="revokes", daemon=True)
        self.app, self.connect = app, connect
        self._stop_asked = threading.Event()

    def stop(self) -> None:
        """Ask it to end; `join()` waits for that."""
        self._stop_asked.set()

    def run(self) -> None:
        while not self._stop_asked.is_set():
            try:
                with self.app.connection_for_read() as connection, self.connect() as client:
                    self._listen(connection, client)
            except Exception as error:
                # Of Redis or of kombu, which has many: whatever it was, the next broadcast must be heard.
                log.warning("event=revokes_unheard error=%s", type(error).__name__)
                self._stop_asked.wait(_PAUSE_SECONDS)

    def _listen(self, connection: Connection, client: redis.Redis) -> None:
        def heard(body: Any, _message: Any) -> None:
            if (command := _as_command(body)) is not None:
                client.lpush(COMMANDS, command.model_dump_json())

        pidbox = f"{self.app.conf.control_exchange}.pidbox"
        exchange = Exchange(pidbox, "fanout", durable=False, delivery_mode=1)  # type: ignore[no-untyped-call]
        name = f"cyxwiz.revokes.{socket.gethostname()}.{threading.get_native_id()}"
        queue = Queue(name, exchange, durable=False, auto_delete=True)  # type: ignore[no-untyped-call]
        consumer = Consumer(  # type: ignore[no-untyped-call]
            connection, [queue], callbacks=[heard], accept=["json"], no_ack=True
        )
        with consumer:
            while not self._stop_asked.is_set():
                with suppress(TimeoutError):
                    connection.drain_events(timeout=_POLL_SECONDS)  # type: ignore[no-untyped-call]


def _as_command(body: Any) -> Revoke | None:
    if not isinstance(body, dict) or body.get("method") != "revoke" or not isinstance(body.get("arguments"), dict):
        return None
    ids = body["arguments"].get("task_id")
    ids = [ids] if isinstance(ids, str) else ids
    if not isinstance(ids, list) or not ids:
        return None
    jobs = tuple(id for id in ids[:_LIMIT] if isinstance(id, str))
    return Revoke(jobs=jobs, terminate=bool(body["arguments"].get("terminate")))
