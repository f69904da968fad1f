"""The scheduler's end of the wire, scripted by a test: what a client sends arrives here over a real Redis."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import redis

from cyxwiz_tasks.celery_app import make_app
from cyxwiz_tasks.protocol.names import COMMANDS, HEADER, INBOX, QUERIES, progress_key
from cyxwiz_tasks.protocol.queries import Reply
from cyxwiz_tasks.protocol.updates import Ack, Acks, Update


class SchedulerPeer:
    """Accepts every job at once; `answer` is asked for everything else. Use it with `with`."""

    def __init__(self, broker_url: str) -> None:
        self.connection = redis.Redis.from_url(broker_url, protocol=2)
        self.app = make_app(broker_url)
        #: Celery makes one for each thread, and does not close it
        self.backend = self.app.backend
        self.messages: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []
        #: what to say to one job
        self.acknowledge: Callable[[str], Ack | None] = lambda id: Ack(id=id, job=id, state="ACCEPTED")
        #: what to say to one query or command
        self.answer: Callable[[dict[str, Any]], Reply] = lambda request: Reply()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.connection.close()
        self.app.close()

    def tell(self, job_id: str, kind: str, **fields: Any) -> None:
        """Add to a job's progress stream."""
        update = Update(kind=kind, **fields)  # type: ignore[arg-type]
        self.connection.xadd(progress_key(job_id), {"update": update.model_dump_json()})

    def header(self, position: int = -1) -> dict[str, Any]:
        return self.messages[position]["headers"][HEADER]

    def _run(self) -> None:
        while not self._stop.is_set():
            found = self.connection.brpop([INBOX, QUERIES, COMMANDS], timeout=0.05)
            if found is not None:
                key, raw = found
                self._job(json.loads(raw)) if key.decode() == INBOX else self._request(json.loads(raw))

    def _job(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        ack = self.acknowledge(message["headers"]["id"])
        reply_to = message["headers"][HEADER].get("reply_to")
        if ack is not None and ack.job is not None:
            self.backend.store_result(ack.job, None, "ACCEPTED")
        if ack is not None and reply_to is not None:
            self.connection.lpush(reply_to, Acks(acks=(ack,)).model_dump_json())

    def _request(self, request: dict[str, Any]) -> None:
        self.requests.append(request)
        self.connection.lpush(request["reply_to"], self.answer(request).model_dump_json())
