"""The thread that answers read queries, in every scheduler process, leader or standby.

Nothing is kept for a crash: whoever asked asks again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import redis
from pydantic import ValidationError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from broker.scheduler.log_lines import line
from broker.scheduler.outbox import REPLY_TTL_SECONDS
from broker.scheduler.queries import answer
from cyxwiz_tasks.errors import CyxwizError, ProtocolError, ServerUnavailable
from cyxwiz_tasks.protocol.names import QUERIES
from cyxwiz_tasks.protocol.queries import Query, Reply
from db.engine import is_transient

log = logging.getLogger(__name__)

_BLOCK_SECONDS = 0.25
_PAUSE_SECONDS = 0.5
#: Whoever hears it asks again for as long as he can wait: a restart of PostgreSQL is over by then.
_UNREADABLE = "the scheduler cannot read its record: see that PostgreSQL runs, and what CYXWIZ_DATABASE_URL says there"


class QueryServer(threading.Thread):
    def __init__(self, engine: Engine, connect: Callable[[], redis.Redis]) -> None:
        super().__init__(name="queries", daemon=True)
        self.engine, self.connect = engine, connect
        self._stop_asked = threading.Event()

    def stop(self) -> None:
        """Answer what it is at, and end."""
        self._stop_asked.set()
        self.join()

    def run(self) -> None:
        client = self.connect()
        while not self._stop_asked.is_set():
            try:
                found: Any = client.brpop([QUERIES], _BLOCK_SECONDS)
                if found is not None:
                    self._serve(client, found[1])
            except redis.RedisError:
                self._stop_asked.wait(_PAUSE_SECONDS)
        client.close()

    def _serve(self, client: redis.Redis, raw: bytes) -> None:
        try:
            query = Query.model_validate_json(raw)
        except ValidationError as error:
            log.warning(line("query_refused", reason=error.errors()[0]["type"]))
            return
        pipe = client.pipeline(transaction=False)
        pipe.lpush(query.reply_to, self._reply(query))
        pipe.expire(query.reply_to, REPLY_TTL_SECONDS)
        pipe.execute()

    def _reply(self, query: Query) -> str:
        try:
            with self.engine.connect() as tx:
                return Reply(value=answer(tx, query)).model_dump_json()
        except CyxwizError as error:
            reply = Reply(error_type=type(error).__name__, error=str(error))
        except Exception as error:
            # One odd question, or an answer that cannot be written, must not leave all others without one.
            if _will_pass(error):
                log.warning(line("query_failed", name=query.name, error=type(error).__name__))
                reply = Reply(error_type=ServerUnavailable.__name__, error=_UNREADABLE)
            else:
                log.exception(line("query_failed", name=query.name))
                reply = Reply(error_type=ProtocolError.__name__, error=f"query {query.name!r}: {type(error).__name__}")
        return reply.model_dump_json()


def _will_pass(error: Exception) -> bool:
    """Whether the same question may be answered once PostgreSQL is well again."""
    return isinstance(error, PoolTimeout) or (isinstance(error, DBAPIError) and is_transient(error))
