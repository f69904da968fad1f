"""PostgreSQL as the scheduler meets it: transactions that fail, sessions that end, and the lock of the leader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy.exc import OperationalError

from db.attempts import NewAttempt
from db.first_attempts import FirstAttempt
from db.new_jobs import NewJob
from tests.simulation.clock import WALL_SECONDS
from tests.simulation.memory_db import first_attempts
from tests.simulation.memory_db import tables as memory
from tests.simulation.memory_db.tables import Tables, Tx
from tests.simulation.world import World

#: as `db.engine` sets idle_in_transaction_session_timeout, and `broker.scheduler.command` the leader's silence
STALLED_SECONDS = SILENCE_SECONDS = 10.0


def away(what: str) -> OperationalError:
    return OperationalError(f"simulated: {what}", {}, Exception())


class FakePostgres:
    """Stands for the engine, too, and for the one connection that a leader keeps."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.tables = Tables(lambda: WALL_SECONDS + world.now)
        self.up = True
        #: how the next commit fails: "lost", or "unknown" if only its answer is lost
        self.next_commit: str | None = None
        self.committed: Callable[[Tx], None] = lambda tx: None
        self._holder: FakeLeadership | None = None
        self._open: tuple[Tx, float] | None = None

    def stop(self) -> None:
        """All sessions end, and what they had not committed is undone."""
        self.up = False
        self._abort()
        if self._holder is not None:
            self._holder.release()

    def try_lead(self, is_alive: Callable[[], bool]) -> FakeLeadership | None:
        """Leadership, if nobody has it. Waits out a transaction in which the last leader stands still."""
        if not self.up or (self._holder is not None and self._holder.holds()):
            return None
        if self._open is not None:
            if self.world.now - self._open[1] < STALLED_SECONDS:
                return None
            self._abort()
        self.tables.epoch += 1
        self._holder = FakeLeadership(self.world, self.tables.epoch, is_alive)
        return self._holder

    @contextmanager
    def transaction(self, epoch: int | None = None) -> Iterator[Tx]:
        """`db.fenced.fenced`, or without an epoch any transaction. Raises NotLeader, and OperationalError."""
        if not self.up:
            raise away("the server does not answer")
        with memory.fenced(self.tables, self.tables.epoch if epoch is None else epoch) as tx:
            self._open = tx, self.world.now
            try:
                yield tx
                if tx.aborted:
                    raise away("the session was ended")
                fails, self.next_commit = (self.next_commit, None) if tx.changed else (None, self.next_commit)
                if fails == "lost":
                    raise away("the connection broke before the commit")
            finally:
                if not tx.aborted:
                    self._open = None
        self.committed(tx)
        if fails == "unknown":
            raise away("the answer to the commit is lost")

    def begin(self) -> Iterator[Tx]:
        return self.transaction()  # type: ignore[return-value]

    connect = begin

    def _abort(self) -> None:
        if self._open is not None:
            self._open[0].abort()
            self._open = None


class FakeLeadership:
    """`db.leadership.Leadership`: the lock goes with its session."""

    def __init__(self, world: World, epoch: int, is_alive: Callable[[], bool]) -> None:
        self.world, self.epoch, self._is_alive = world, epoch, is_alive
        self._heard_at: float | None = world.now

    def holds(self) -> bool:
        heard_at = self._heard_at
        return heard_at is not None and self._is_alive() and self.world.now - heard_at <= SILENCE_SECONDS

    def alive(self) -> bool:
        if not self.holds():
            self._heard_at = None
            return False
        self._heard_at = self.world.now
        return True

    def release(self) -> None:
        self._heard_at = None


@contextmanager
def fenced(connection: FakePostgres, epoch: int) -> Iterator[Tx]:
    """`db.fenced.fenced`."""
    with connection.transaction(epoch) as tx:
        yield tx


@contextmanager
def fences_itself(connection: FakePostgres) -> Iterator[FakePostgres]:
    """`db.fenced.fences_itself`."""
    yield connection


def accept_placed(
    connection: FakePostgres,
    epoch: int,
    jobs: Sequence[NewJob],
    attempts: Sequence[NewAttempt],
    lease_seconds: float,
) -> dict[str, FirstAttempt]:
    """`db.first_attempts.accept_placed`, which is a transaction of its own."""
    with connection.transaction(epoch) as tx:
        return first_attempts.accept_placed(tx, epoch, jobs, attempts, lease_seconds)
