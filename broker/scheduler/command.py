"""What `cyxwiz scheduler` runs: answer queries, wait for leadership, lead, and so on until SIGTERM or SIGINT."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from broker.scheduler.hindrance import Hindrance
from broker.scheduler.leader import Leader
from broker.scheduler.log_lines import line
from broker.scheduler.query_server import QueryServer
from cyxwiz_tasks.celery_app import make_app
from cyxwiz_tasks.errors import NotLeader, ServerUnavailable
from cyxwiz_tasks.settings import Settings
from db.engine import is_transient, make_engine
from db.leadership import lead

log = logging.getLogger(__name__)

#: a leader that was silent for so long has lost its lock
SILENCE_SECONDS = 6.0
#: pause after a term that ended because PostgreSQL went away; doubled after each one that ended soon
_PAUSE_SECONDS, _PAUSE_CAP_SECONDS = 0.2, 5.0
_SOON_SECONDS = 10.0


def run_scheduler(settings: Settings, stop: threading.Event | None = None) -> None:
    """Run one scheduler process until `stop`, or without one until SIGTERM or SIGINT.

    Whatever a leader held in memory goes with its term: after each one the process stands by as if it had just started.
    """
    stop = stop or _stop_on_signals()
    _log_to_stderr()
    # Jobs on their way make thousands of long-lived dictionaries and no cycles: by default a third of the loop's time
    # went into looking for some.
    gc.set_threshold(100_000, 50, 100)
    connect = redis_connector(settings.broker())
    holder = f"{socket.gethostname()}:{os.getpid()}"
    engine = make_engine(settings.database(), "cyxwiz-scheduler")
    queries = QueryServer(engine, connect)
    queries.start()
    pause_seconds = _PAUSE_SECONDS
    try:
        while not stop.is_set():
            began = time.monotonic()
            with _term(settings, engine, connect, holder, stop) as leader:
                if leader is not None:
                    began = time.monotonic()
                    leader.run(stop)
            ended_soon = time.monotonic() - began < _SOON_SECONDS
            stop.wait(pause_seconds * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            pause_seconds = min(2 * pause_seconds, _PAUSE_CAP_SECONDS) if ended_soon else _PAUSE_SECONDS
    finally:
        queries.stop()
        engine.dispose()
        log.info(line("stopped"))


def redis_connector(url: str) -> Any:
    """A maker of clients that never repeat a command by themselves: a move that is repeated moves two messages."""

    def connect() -> redis.Redis:
        return redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=5.0,
            socket_connect_timeout=5.0,
            socket_keepalive=True,
            client_name="cyxwiz-scheduler",
            retry=Retry(NoBackoff(), 0),
        )

    return connect


@contextmanager
def _term(
    settings: Settings, engine: Engine, connect: Any, holder: str, stop: threading.Event
) -> Iterator[Leader | None]:
    """A leader, once it may lead; None if `stop` came first.

    Swallows what PostgreSQL raises when it goes away, and NotLeader: another scheduler took over, as from a frozen one.
    """
    log.info(line("standing_by", holder=holder))
    leadership = lead(engine, holder, stop, silence_seconds=SILENCE_SECONDS, tell=Hindrance())
    if leadership is None:
        yield None
        return
    app = make_app(settings.broker())
    # The leader must not stand still in Celery while Redis is away: it says again what it could not say.
    app.conf.update(
        result_backend_always_retry=False,
        result_backend_transport_options={"retry_policy": {"max_retries": 1, "interval_max": 0}},
        redis_socket_timeout=5.0,
    )
    try:
        yield Leader(settings, engine, connect, app, leadership)
    except (DBAPIError, NotLeader, ServerUnavailable, PoolTimeout) as error:
        if isinstance(error, DBAPIError) and not is_transient(error):
            raise
        log.warning(line("term_over", epoch=leadership.epoch, error=type(error).__name__))
    finally:
        leadership.release()
        app.close()


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _log_to_stderr() -> None:
    if not logging.getLogger().handlers:
        logging.basicConfig(
            stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s"
        )
