"""A node's agent: one Celery worker that takes jobs from its own queue and supervises one process for each.

It imports no user code and no torch, and never touches CUDA, so nothing of those is inherited by a job or can take the
agent down.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
import warnings
from typing import Any

import redis
from celery import signals
from celery.apps.worker import Worker
from celery.platforms import EX_OK, SecurityWarning
from celery.worker import state
from kombu.entity import Exchange, Queue

from cyxwiz_tasks.capability import Capability
from cyxwiz_tasks.celery_app import make_app
from cyxwiz_tasks.protocol.names import node_queue
from cyxwiz_tasks.quantities import show_size
from cyxwiz_tasks.settings import Settings
from workers.artifact_store import ArtifactStore
from workers.consumer import Registration
from workers.control import Control
from workers.courier import Courier
from workers.forgetting import Forgetting
from workers.gpus import GpuProvider
from workers.heartbeat import Heartbeat
from workers.journal import Journal
from workers.node import JobPaths, Node
from workers.node_folder import NodeFolder
from workers.registration import leave
from workers.reporter import Reporter
from workers.telemetry import Telemetry
from workers.unsent import Unsent

log = logging.getLogger(__name__)


class NodeWorker(Worker):  # type: ignore[misc]
    """Celery's worker program without its banner, its logging and its way of stopping."""

    node: Node

    def on_before_init(self, **kwargs: Any) -> None:
        # Meant for pickle: whoever may write to the broker runs code as this user. Here nothing but JSON is accepted.
        warnings.filterwarnings("ignore", category=SecurityWarning)
        super().on_before_init(quiet=True, **{name: value for name, value in kwargs.items() if name != "quiet"})

    def setup_logging(self, colorize: bool | None = None) -> bool:
        """Ours is set up already; True: leave it alone."""
        return True

    def set_process_status(self, info: str) -> None:
        """Celery would put the whole command line into the process's title."""

    def install_platform_tweaks(self, worker: Worker) -> None:
        """First signal: give every place back and end in order. Second: end at once; the fork server ends the jobs."""

        def stop(signal_number: int, _: Any) -> None:
            if self.node.stopping:
                os._exit(128 + signal_number)
            self.node.stopping = True
            state.should_stop = EX_OK
            # Nothing more: the loop looks once a second, and this thread may hold its lock just now.

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)

    def on_consumer_ready(self, consumer: Any) -> None:
        signals.worker_ready.send(sender=consumer)
        log.info("%s", ready_line(self.node))


def run_node(folder: NodeFolder, capability: Capability, gpus: GpuProvider, paths: JobPaths, settings: Settings) -> int:
    """Run the node until it is told to stop; returns the exit status."""
    # A thread that starts a job must not wait Python's 5 ms for one that sends events.
    sys.setswitchinterval(0.0005)
    url = settings.broker()
    incarnation = str(uuid.uuid4())
    app = make_app(url)
    configure(app, folder.id, incarnation)
    client = connect(url, "node")
    node = Node(
        folder=folder,
        incarnation=incarnation,
        hostname=f"{folder.name}@{folder.id[:8]}",
        capability=capability,
        settings=settings,
        paths=paths,
        app=app,
        redis=client,
        reporter=Reporter(connect(url, "reporter")),
        gpus=gpus,
        journal=Journal(folder.path / "journal"),
        artifact_store=ArtifactStore(settings.artifact_store) if settings.artifact_store else None,
    )
    node.courier = Courier(node)
    # Their names tell the scheduler that this process lives as long as the kernel has not closed them.
    heartbeat = Heartbeat(node, connect(url, f"beat-{node.id}", timeout_seconds=3.0), Telemetry(gpus, folder.path))
    control = Control(node, connect(url, f"control-{node.id}"))
    worker = NodeWorker(
        app=app,
        hostname=node.hostname,
        concurrency=capability.slots,
        queues=[node_queue(node.id)],
        loglevel=logging.INFO,
        without_gossip=True,
        without_mingle=True,
        task_events=True,
    )
    worker.node = node
    parts = (node.reporter, node.courier, heartbeat, control, Unsent(node), Forgetting(node))
    for part in parts:
        part.start()
    try:
        worker.start()
        leave(node)
    finally:
        for part in reversed(parts):
            part.stop()
    log.info("node %s stopped", node.name)
    return int(worker.exitcode or 0)


def configure(app: Any, node_id: str, incarnation: str) -> None:
    """Make an application of the project's the one of this node."""
    name = node_queue(node_id)
    # Without acknowledgements: a message that dies with this process is published again when its lease ends, and a list
    # of unacknowledged ones would cost every job two round trips.
    queue = Queue(name, Exchange(""), routing_key=name, no_ack=True)  # type: ignore[no-untyped-call]
    app.conf.task_queues = [*app.conf.task_queues, queue]
    app.conf.worker_pool = "workers.pool:WarmProcessPool"
    app.conf.worker_consumer = "workers.consumer:NodeConsumer"
    app.conf.worker_redirect_stdouts = False
    # A server that turns read-only or refuses otherwise comes back; Celery's own worker would end for good.
    app.conf.broker_channel_error_retry = True
    keys = f"cyxwiz.unacked.{incarnation}"
    app.conf.broker_transport_options = app.conf.broker_transport_options | {
        "unacked_key": keys,
        "unacked_index_key": f"{keys}.index",
        "unacked_mutex_key": f"{keys}.mutex",
        "client_name": "cyxwiz-worker",
    }
    app.steps["consumer"].add(Registration)


def connect(url: str, purpose: str, timeout_seconds: float = 15.0) -> redis.Redis:
    """A Redis client whose calls end within a time-out: nothing may wait for ever on a dead connection."""
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=min(5.0, timeout_seconds),
        socket_keepalive=True,
        health_check_interval=25,
        client_name=f"cyxwiz-{purpose}",
    )


def ready_line(node: Node) -> str:
    """`node NAME (id) ready: 2 slots, 2 x RTX-4090 24GB, 16 cores, 64GB`."""
    able = node.capability
    models: dict[str, int] = {}
    for gpu in able.gpus:
        text = f"{gpu.model} {show_size(gpu.memory_bytes)}" + (" (declared, runs on the CPU)" if gpu.fake else "")
        models[text] = models.get(text, 0) + 1
    gpus = ", ".join(f"{count} x {text}" for text, count in models.items()) or "no GPU"
    slots = f"{able.slots} slot" + ("" if able.slots == 1 else "s")
    return (
        f"node {node.name} ({node.id[:8]}) ready: {slots}, {gpus}, {able.cpu_cores} cores, {show_size(able.ram_bytes)}"
    )
