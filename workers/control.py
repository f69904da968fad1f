"""What the scheduler tells this node: a thread that reads the node's own list."""

from __future__ import annotations

import logging
import threading

import redis
from pydantic import ValidationError

from cyxwiz_tasks.protocol.controls import CONTROL, Stop
from cyxwiz_tasks.protocol.names import control_key
from workers.node import Node
from workers.registration import register_again

log = logging.getLogger(__name__)

_BLOCK_SECONDS = 10
_PAUSE_SECONDS = 0.5


class Control:
    """Hands every control on to whom it concerns."""

    def __init__(self, node: Node, client: redis.Redis) -> None:
        self._node, self._client = node, client
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cyxwiz-control", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        # The thread blocks in Redis for seconds and holds nothing: it ends with the process.
        self._stopping.set()

    def _run(self) -> None:
        key = control_key(self._node.id)
        while not self._stopping.is_set():
            try:
                taken = self._client.brpop([key], timeout=_BLOCK_SECONDS)
                if taken is not None:
                    self._handle(taken[1])
            except redis.RedisError as error:
                log.debug("control: %s", error)
                self._stopping.wait(_PAUSE_SECONDS)

    def _handle(self, message: bytes | str) -> None:
        try:
            control = CONTROL.validate_json(message)
        except ValidationError as error:
            log.warning("control: a message that cannot be read: %s", error.errors()[0]["msg"])
            return
        if isinstance(control, Stop):
            log.info("job %s: to be %s", control.job, control.outcome)
            self._node.attempts.stop(control)
        elif not self._node.stopping:
            log.info("node %s: the scheduler asks who this is", self._node.name)
            register_again(self._node)
