"""Tell the scheduler who is here and what it can do, and wait until it has that in the record."""

from __future__ import annotations

import logging
import time

import redis
from celery.worker.state import maybe_shutdown

from cyxwiz_tasks import failpoints
from cyxwiz_tasks.protocol.names import REPORTS
from cyxwiz_tasks.protocol.reports import Left, Register, Stopping
from workers.confirm import ask
from workers.node import Node

log = logging.getLogger(__name__)

#: how long one try waits; between tries the node looks whether it shall stop
_TRY_SECONDS = 1
_PAUSE_SECONDS = 0.5
_LEAVE_SECONDS = 3


def register(node: Node) -> None:
    """Return once a scheduler has this incarnation in the record. Raises WorkerShutdown if the node is told to stop."""
    failures = 0
    while True:
        maybe_shutdown()
        failpoints.hit("agent.before_register")
        try:
            reply = ask(node.redis, _registration(node), _TRY_SECONDS)
        except redis.RedisError as error:
            log.warning("node %s: the broker does not take its registration (%s), trying again", node.name, error)
            time.sleep(_PAUSE_SECONDS)
            continue
        if reply is not None and reply.committed:
            node.registered.set()
            return
        if reply is not None:
            log.warning("node %s: the scheduler refused it: %s", node.name, reply.message)
            time.sleep(_PAUSE_SECONDS)
        elif failures in (1, 30):
            log.warning("node %s: waits for a scheduler: start one with `cyxwiz scheduler`", node.name)
        failures += 1


def register_again(node: Node) -> None:
    """The scheduler asked who this is: tell it, without waiting. Raises redis' errors."""
    node.redis.lpush(REPORTS, _registration(node).model_dump_json())


def say_stopping(node: Node) -> None:
    """Tell the scheduler that this node gives its places back and leaves soon, so that it sends nothing new."""
    try:
        node.redis.lpush(REPORTS, Stopping(node=node.id, incarnation=node.incarnation).model_dump_json())
    except redis.RedisError as error:
        log.warning("node %s: that it stops could not be told: %s", node.name, error)


def leave(node: Node) -> None:
    """Tell the scheduler that this node stops in order; if nobody hears it, the lease decides."""
    try:
        ask(node.redis, Left(node=node.id, incarnation=node.incarnation), _LEAVE_SECONDS)
    except redis.RedisError as error:
        log.warning("node %s: its leave could not be told: %s", node.name, error)


def _registration(node: Node) -> Register:
    return Register(
        node=node.id,
        incarnation=node.incarnation,
        name=node.name,
        hostname=node.hostname,
        capability=node.capability,
        running=node.open_tokens(),
    )
