"""The Celery application and its settings, in one place.

`app` is the default one: it looks up the broker when a connection is first needed, so a module with `@job` functions
can be imported, and its functions called directly, where no stack runs.
"""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

from celery import Celery, _state
from kombu.entity import Exchange, Queue

from cyxwiz_tasks.job_header import fold
from cyxwiz_tasks.protocol.names import HEADER, INBOX
from cyxwiz_tasks.settings import settings

#: The default exchange needs no binding: publishing is one LPUSH, with no look-up of a routing table before it.
INBOX_QUEUE = Queue(INBOX, Exchange(""), routing_key=INBOX)  # type: ignore[no-untyped-call]


class Application(Celery):  # type: ignore[misc]
    """A Celery application for the broker at `server`, or, without one, for the stack that `settings()` knows.

    Celery itself would let CELERY_BROKER_URL and CELERY_RESULT_BACKEND overrule what is given here.
    """

    def __init__(self, name: str, server: str | None = None) -> None:
        self._server = server
        # Never the current application of the process: that is for the user's own Celery application.
        super().__init__(name, set_as_current=False)

    @property
    def server(self) -> str:
        """The URL of the Redis that is both broker and result backend.

        Raises NoStack if none was given and none is known.
        """
        return self._server or settings().broker()

    @property
    def backend_cls(self) -> str:
        return self.server

    def connection_for_read(self, url: str | None = None, **kwargs: Any) -> Any:
        return super().connection_for_read(url or self.server, **kwargs)

    def connection_for_write(self, url: str | None = None, **kwargs: Any) -> Any:
        return super().connection_for_write(url or self.server, **kwargs)

    def close(self) -> None:
        """Also close this thread's connections to the result backend, which Celery leaves to the garbage collector."""
        if self._backend is not None:
            # Or an AsyncResult that is collected later would connect again, to unsubscribe.
            self._backend.result_consumer.subscribed_to.clear()
            self._backend.result_consumer.stop()
            self._backend.client.connection_pool.disconnect()
        super().close()

    def reconnect(self) -> None:
        """Let go of all connections: the next use looks up the broker again, which may have moved."""
        self._after_fork()
        self._backend_cache = None
        self._local = threading.local()

    def send_task(self, name: str, *args: Any, **options: Any) -> Any:
        """Celery's own, except that what is ours among the options goes into the header.

        A node that publishes the next job of a chain comes here: it does not know that job's task.
        """
        if HEADER in (options.get("headers") or {}):
            options = fold(options)
        return super().send_task(name, *args, **options)


def make_app(broker_url: str | None = None) -> Application:
    """An application with every setting that this project relies on; without a URL it uses the stack that runs here."""
    made = Application("cyxwiz", broker_url)
    _remember_chords(made)
    made.conf.update(_messages() | _connections() | _worker())
    return made


def install(own: Celery) -> Celery:
    """Let a Celery application of the user's own carry jobs: `@own.task(base=JobTask, resources=...)`.

    Its broker and result backend must be the Redis of the scheduler; where it names none, they are the stack that runs
    here. Its queues, and what its own workers consume, stay as they are. Returns the application.
    """
    _remember_chords(own)
    if own.configured:
        _complete(own)
    else:
        # Its settings may still be read from a module of the user's, after this call.
        own.on_after_configure.connect(_complete, weak=False)
    return own


def _remember_chords(made: Celery) -> None:
    """Let it have our result backend wherever its address names Redis."""
    backend = "cyxwiz_tasks.result_backend:ResultBackend"
    made.loader.override_backends = made.loader.override_backends | dict.fromkeys(("redis", "rediss"), backend)


def _complete(sender: Celery, **_: Any) -> None:
    conf = sender.conf
    if not conf.broker_url:
        conf.broker_url = settings().broker()
    if not conf.result_backend:
        conf.result_backend = conf.broker_url
    conf.update(task_protocol=2, result_backend_always_retry=True)


def _messages() -> dict[str, Any]:
    return {
        # Pickle on a shared broker is remote code execution.
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "task_protocol": 2,
        "enable_utc": True,
        "timezone": "UTC",
        "task_default_queue": INBOX,
        "task_default_exchange": "",
        "task_default_routing_key": INBOX,
        "task_queues": [INBOX_QUEUE],
        # A typo in a queue's name must be an error, not a list that nobody reads.
        "task_create_missing_queues": False,
        # Early ack: leases in Postgres decide what runs again, so Redis' visibility timeout never matters.
        "task_acks_late": False,
        "task_track_started": False,
        # So that Flower lists a task from the moment it is sent.
        "task_send_sent_event": True,
        "result_expires": settings().result_ttl_seconds,
        # Without it a job that ends while Redis is away turns into a FAILURE.
        "result_backend_always_retry": True,
        # Celery's default sleep grows to 10 s: a short outage would then cost ten.
        "result_backend_max_sleep_between_retries_ms": 1000,
    }


def _connections() -> dict[str, Any]:
    # Every consumer on a Redis database hands out again what *anybody* left unacknowledged for its own visibility
    # timeout, judged by its own clock: with keys of its own a process can only ever do that to itself.
    own = f"cyxwiz.unacked.{socket.gethostname()}.{os.getpid()}"
    return {
        "broker_transport_options": {
            "unacked_key": own,
            "unacked_index_key": f"{own}.index",
            "unacked_mutex_key": f"{own}.mutex",
            # One list per queue: our own priority is in the header, and the scheduler orders by that.
            "priority_steps": [0],
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            # Less than socket_timeout, so that a dead peer is noticed while nothing is sent.
            "health_check_interval": 25,
            "client_name": "cyxwiz",
        },
        "redis_socket_timeout": 30,
        "redis_socket_connect_timeout": 5,
        "redis_socket_keepalive": True,
        "redis_backend_health_check_interval": 25,
        "redis_client_name": "cyxwiz",
        "broker_connection_retry_on_startup": True,
        # None is for ever; the default gives up after 48 minutes and leaves a node that does nothing.
        "broker_connection_max_retries": None,
        # Users wait for these in the foreground: one quick retry, then an error that says what to do.
        "task_publish_retry_policy": {
            "max_retries": 2,
            "interval_start": 0.1,
            "interval_step": 0.2,
            "interval_max": 0.5,
        },
    }


def _worker() -> dict[str, Any]:
    return {
        # A prefetched job waits on a busy node while another is free.
        "worker_disable_prefetch": True,
        "worker_prefetch_multiplier": 1,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        # The lease decides: a job whose node lost its connection goes on.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # Starting with the number of slots again after a reconnect would starve the node.
        "worker_enable_prefetch_count_reduction": False,
    }


app = make_app()
if _state.default_app is None or (_state.default_app.main == "default" and not _state.default_app.configured):
    # There is none yet, or the placeholder that Celery makes when somebody asks too early and that nobody has used.
    # A bare `AsyncResult(id)` then means this application in a program that has no Celery application of its own: one
    # that it makes, before or after, takes precedence, and so does `set_default()`.
    app.set_default()
