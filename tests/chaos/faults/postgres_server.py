"""PostgreSQL restarted, crashed, locked, and out of connections."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any

import psycopg

from tests.chaos.faults.fault import BLINK, PATIENCE_SECONDS, Fault
from tests.chaos.schedule import Kind

_AWAY = (0.2, 2.0)
_OF_SCHEDULERS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'cyxwiz-scheduler' ORDER BY pid"


class PostgresFast(Fault):
    """Told to stop: transactions are rolled back."""

    kind = Kind("postgres_restart_fast", "postgres", _AWAY)
    number = signal.SIGINT

    def inject(self) -> None:
        process = self.stack.servers.postmaster()
        self.stack.servers.end(process, self.number)
        self.proof = {"pid": process.pid, "gone": True}

    def heal(self) -> None:
        self.stack.servers.bring_back(self.stack.servers.postgres)


class PostgresImmediate(PostgresFast):
    """Stopped without a word: it recovers from its log."""

    kind = Kind("postgres_restart_immediate", "postgres", _AWAY)
    number = signal.SIGQUIT


class BackendKilled(Fault):
    """SIGKILL of one session: the server ends all others and recovers by itself."""

    kind = Kind("postgres_backend_killed", "postgres", BLINK)

    def inject(self) -> None:
        self.until(lambda: self.stack.leader() is not None, PATIENCE_SECONDS)
        with self.stack.servers.database() as connection:
            pids = [row[0] for row in connection.execute(_OF_SCHEDULERS)]
            if pids:
                os.kill(pids[self.planned.choice % len(pids)], signal.SIGKILL)
                self.proof = {"pid": pids[self.planned.choice % len(pids)]}


class SessionsTerminated(Fault):
    """The leader's sessions, its lock among them, are ended by an administrator."""

    kind = Kind("leader_sessions_terminated", "postgres", BLINK)

    def inject(self) -> None:
        with self.stack.servers.database() as connection:
            if self.until(lambda: self._end_sessions(connection) > 0, PATIENCE_SECONDS):
                self.proof = {"ended": self.ended}

    def _end_sessions(self, connection: psycopg.Connection[Any]) -> int:
        """How many: none while nobody leads."""
        rows = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
        ).fetchall()
        self.ended = len(rows)
        return self.ended


class ConnectionsExhausted(Fault):
    """Every connection that the server has is taken, and the leader has to make a new one."""

    kind = Kind("connections_exhausted", "postgres", (1.0, 4.0))

    def inject(self) -> None:
        self._held: list[psycopg.Connection[Any]] = []
        with self.stack.servers.database() as connection:
            try:
                for _ in range(500):
                    self._held.append(psycopg.connect(self.stack.servers.postgres.dsn, application_name="chaos"))
            except psycopg.OperationalError as error:
                self.proof = {"held": len(self._held), "refused": str(error).strip()[-60:]}
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted")
            with suppress(psycopg.OperationalError):
                # The place that has just come free.
                self._held.append(psycopg.connect(self.stack.servers.postgres.dsn, application_name="chaos"))

    def heal(self) -> None:
        for connection in getattr(self, "_held", []):
            connection.close()


class TableLocked(Fault):
    """As a careless migration: nobody reads or writes the jobs."""

    kind = Kind("jobs_table_locked", "postgres", (1.0, 5.0))

    def inject(self) -> None:
        with self.stack.servers.database() as connection:
            connection.execute("SET lock_timeout = '10s'")
            connection.execute("BEGIN")
            connection.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
            self.wait(self.planned.seconds)
            with self.stack.servers.database() as other:
                row = other.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
            connection.execute("ROLLBACK")
        self.proof = {"waiting": row[0] if row else 0}


KINDS: tuple[type[Fault], ...] = (
    PostgresFast,
    PostgresImmediate,
    BackendKilled,
    SessionsTerminated,
    ConnectionsExhausted,
    TableLocked,
)
