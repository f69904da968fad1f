"""The durable servers of a run, as users have them: fsync on, append-only file on. They can be killed and come back."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis

from broker.embedded import EmbeddedRedis
from db.embedded import EmbeddedPostgres
from db.embedded_account import SHARED_FOLDER
from db.embedded_server import EmbeddedServer
from tests.acceptance.processes import wait_until

#: long enough for the recovery of a killed PostgreSQL on a busy machine
_PATIENCE_SECONDS = 60.0


class Servers:
    """One PostgreSQL and one Redis in `folder`, reached here without any proxy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.postgres = EmbeddedPostgres(folder / "postgres")
        self.redis = EmbeddedRedis(folder / "redis")

    def start(self) -> None:
        self.postgres.start()
        self.redis.start()

    def stop(self) -> None:
        self.redis.stop()
        self.postgres.stop()
        for moved in self.folder.rglob("location.txt"):
            place = Path(moved.read_text().strip())
            if place.is_relative_to(SHARED_FOLDER):
                shutil.rmtree(place, ignore_errors=True)

    @contextmanager
    def redis_client(self) -> Iterator[redis.Redis]:
        """Waits for a Redis that is away."""
        wait_until(self.redis.alive, _PATIENCE_SECONDS, "Redis")
        with redis.Redis.from_url(self.redis.url, protocol=2, socket_timeout=20, client_name="chaos") as client:
            yield client

    @contextmanager
    def database(self, *, patience_seconds: float = _PATIENCE_SECONDS) -> Iterator[psycopg.Connection[Any]]:
        """A connection in autocommit mode; waits for a PostgreSQL that is away."""
        end = time.monotonic() + patience_seconds
        while True:
            try:
                connection = psycopg.connect(
                    self.postgres.dsn, autocommit=True, application_name="chaos", connect_timeout=5
                )
                break
            except psycopg.OperationalError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        with connection:
            yield connection

    def redis_process(self) -> psutil.Process:
        with self.redis_client() as client:
            return psutil.Process(client.info("server")["process_id"])

    def postmaster(self) -> psutil.Process:
        with self.database() as connection:
            found = psutil.Process(connection.info.backend_pid).parent()
        assert found is not None
        return found

    def end(self, process: psutil.Process, number: int = signal.SIGKILL) -> None:
        """Signal a server and wait until it is gone, harder in the end."""
        os.kill(process.pid, number)
        try:
            process.wait(15)
        except psutil.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait(15)

    def bring_back(self, server: EmbeddedServer) -> None:
        server.start()
        wait_until(server.alive, _PATIENCE_SECONDS, server.name)
