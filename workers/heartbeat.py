"""The node's heartbeat: one script a beat, with the time of Redis' clock, and a fresh reading of how busy it is."""

from __future__ import annotations

import logging
import threading
import time

import redis

from cyxwiz_tasks.protocol.names import BEATS, running_key, telemetry_key
from cyxwiz_tasks.protocol.reports import Running
from workers.node import Node
from workers.telemetry import Telemetry

log = logging.getLogger(__name__)

_READING_SECONDS = 2.0
_TELLING_SECONDS = 1.0
_TEXT_TTL_SECONDS = 60

#: One round trip; the time is the server's, so the clocks of two machines are never compared.
_BEAT = """
local t = redis.call('TIME')
redis.call('ZADD', KEYS[1], t[1] + t[2] / 1000000, ARGV[1])
for i = 2, #KEYS do
    if ARGV[i + 1] ~= '' then redis.call('SET', KEYS[i], ARGV[i + 1], 'EX', ARGV[2]) end
end
return t
"""


class Heartbeat:
    """A thread of its own with a connection of its own: whatever else hangs, the node beats."""

    def __init__(self, node: Node, client: redis.Redis, telemetry: Telemetry) -> None:
        self._node, self._telemetry = node, telemetry
        self._beat = client.register_script(_BEAT)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cyxwiz-heartbeat", daemon=True)
        self._next_reading = 0.0
        self._next_telling = 0.0
        self._number = 0
        self._told: tuple[int, ...] = ()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        # It may wait for its registration or for Redis; it is a daemon and has nothing to finish.
        self._node.registered.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        self._node.registered.wait()
        silent_since: float | None = None
        while not self._stopping.is_set():
            started_at = time.monotonic()
            try:
                texts = [self._reading(started_at), self._running(started_at)]
                seconds, microseconds = self._beat(
                    keys=[BEATS, telemetry_key(self._node.id), running_key(self._node.id)],
                    args=[self._node.id, _TEXT_TTL_SECONDS, *texts],
                )
                self._node.link.heard_at = started_at
                self._node.link.server_ahead_seconds = int(seconds) + int(microseconds) / 1e6 - time.time()
                if silent_since is not None:
                    log.info("heartbeat: Redis is back after %.1f s", started_at - silent_since)
                    silent_since = None
            except redis.RedisError as error:
                if silent_since is None:
                    log.warning("heartbeat: Redis is away: %s", error)
                    silent_since = started_at
            except Exception:
                # Whatever it was: a node that stops beating loses its jobs.
                log.exception("heartbeat: one beat failed")
            took_seconds = time.monotonic() - started_at
            self._stopping.wait(max(0.0, self._node.settings.heartbeat_seconds - took_seconds))

    def _reading(self, now: float) -> str:
        if now < self._next_reading:
            return ""
        self._next_reading = now + _READING_SECONDS
        return self._telemetry.read().model_dump_json()

    def _running(self, now: float) -> str:
        """What runs here, as soon as that changes; the scheduler looks once a second, and takes each telling once."""
        tokens = self._node.open_tokens()
        if tokens == self._told and now < self._next_telling:
            return ""
        self._told, self._next_telling, self._number = tokens, now + _TELLING_SECONDS, self._number + 1
        telling = Running(
            incarnation=self._node.incarnation,
            number=self._number,
            tokens=tokens,
            # The word that they started may be lost, and is said once.
            begun=self._node.attempts.processes(),
            # With each telling again: only the newest one lies in Redis, and the next leader knows nothing.
            checkpoint_age_seconds=self._node.attempts.checkpoint_age_seconds(),
        )
        return telling.model_dump_json(exclude_defaults=True)
