"""Redis restarted, killed, emptied, full, and slow."""

from __future__ import annotations

import os
import signal

import redis

from tests.chaos.faults.fault import BLINK, PATIENCE_SECONDS, Fault
from tests.chaos.schedule import Kind

_AWAY = (0.2, 2.5)


class RedisRestart(Fault):
    """In order, with its append-only file."""

    kind = Kind("redis_restart", "redis", _AWAY)
    number = signal.SIGTERM

    def inject(self) -> None:
        process = self.stack.servers.redis_process()
        self.stack.servers.end(process, self.number)
        self.proof = {"pid": process.pid, "gone": True}

    def heal(self) -> None:
        self.stack.servers.bring_back(self.stack.servers.redis)


class RedisKilled(RedisRestart):
    kind = Kind("redis_killed", "redis", _AWAY)
    number = signal.SIGKILL


class RedisFrozen(Fault):
    """The server itself hangs: connections stay open and nobody is served."""

    kind = Kind("redis_frozen", "redis", (1.0, 4.0))

    def inject(self) -> None:
        self.process = self.stack.servers.redis_process()
        os.kill(self.process.pid, signal.SIGSTOP)
        self.proof = {"pid": self.process.pid, "stopped": True}

    def heal(self) -> None:
        if hasattr(self, "process"):
            os.kill(self.process.pid, signal.SIGCONT)


class RedisEmptied(Fault):
    kind = Kind("redis_emptied", "redis", BLINK)

    def inject(self) -> None:
        with self.stack.servers.redis_client() as client:
            # Just restarted it may hold nothing yet.
            if self.until(lambda: client.dbsize() > 0, PATIENCE_SECONDS):
                self.proof = {"keys": client.dbsize()}
            client.flushall()


class RedisFull(Fault):
    """Every command that needs memory is refused."""

    kind = Kind("redis_full", "redis", (1.0, 4.0))

    def inject(self) -> None:
        with self.stack.servers.redis_client() as client:
            self._limit = client.config_get("maxmemory")["maxmemory"]
            client.config_set("maxmemory", "1mb")
            before = client.info("errorstats").get("errorstat_OOM", {"count": 0})["count"]

            def refused() -> int:
                return int(client.info("errorstats").get("errorstat_OOM", {"count": 0})["count"]) - int(before)

            if self.until(lambda: refused() > 0, 5.0):
                self.proof = {"refused": refused()}

    def heal(self) -> None:
        with self.stack.servers.redis_client() as client:
            client.config_set("maxmemory", getattr(self, "_limit", str(512 * 2**20)))


class RedisPaused(Fault):
    """Every command waits for two seconds."""

    kind = Kind("redis_paused", "redis", (2.0, 2.0))

    def inject(self) -> None:
        with self.stack.servers.redis_client() as client:
            client.execute_command("CLIENT", "PAUSE", "2000", "ALL")
            self.proof = {"paused_milliseconds": 2000}


class RedisConnectionsKilled(Fault):
    """Redis closes every connection, three times in two seconds."""

    kind = Kind("redis_connections_killed", "redis", (2.0, 2.0))

    def inject(self) -> None:
        killed = 0
        for _ in range(3):
            with self.stack.servers.redis_client() as client:
                try:
                    killed += int(client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))
                    killed += int(client.execute_command("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes"))
                except redis.RedisError:
                    continue
            self.wait(0.7)
        if killed:
            self.proof = {"killed": killed}


KINDS: tuple[type[Fault], ...] = (
    RedisRestart,
    RedisKilled,
    RedisFrozen,
    RedisEmptied,
    RedisFull,
    RedisPaused,
    RedisConnectionsKilled,
)
