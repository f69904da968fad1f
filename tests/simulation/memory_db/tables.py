"""Tables as dictionaries, a clock, and transactions that can be rolled back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any, NoReturn

from cyxwiz_tasks.errors import NotLeader


@dataclass(slots=True)
class JobRow:
    """Moments are seconds of the record's clock."""

    id: str
    seq: int
    new: Any
    envelope: str
    accepted_at: float
    not_before: float | None = None
    expires_at: float | None = None
    deadline_at: float | None = None
    state: str = "pending"
    cause: str | None = None
    message: str | None = None
    exception: str | None = None
    traceback: str | None = None
    result: Any = None
    node_id: str | None = None
    current_token: int | None = None
    attempts: int = 0
    assigned_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    first_started_at: float | None = None
    learned: dict[str, Any] | None = None
    cancel_requested_at: float | None = None
    cancel_reason: str | None = None


@dataclass(slots=True)
class AttemptRow:
    token: int
    new: Any
    number: int
    epoch: int
    assigned_at: float
    lease_until: float
    state: str = "assigned"
    cause: str | None = None
    message: str | None = None
    exit_code: int | None = None
    pid: int | None = None
    device: str | None = None
    started_at: float | None = None
    ended_at: float | None = None

    @property
    def job_id(self) -> str:
        return str(self.new.job_id)

    @property
    def node_id(self) -> str:
        return str(self.new.node_id)


@dataclass(slots=True)
class MemberRow:
    token: int
    new: Any
    started_at: float | None = None
    ended_at: float | None = None
    report: dict[str, Any] | None = None


@dataclass(slots=True)
class NodeRow:
    id: str
    name: str
    hostname: str
    incarnation: str
    capability: dict[str, Any]
    first_seen_at: float
    last_seen_at: float
    state: str = "up"
    reputation: float = 1.0
    up_seconds: float = 0.0
    telemetry: dict[str, Any] | None = None
    left_at: float | None = None
    cordon: str | None = None
    cordon_until: float | None = None
    cordon_reason: str | None = None
    faults: int = 0
    quarantines: int = 0
    tried: bool = False


@dataclass(frozen=True, slots=True)
class EventRow:
    epoch: int
    actor: str
    from_state: str | None
    to_state: str | None
    at: float
    job_id: str | None = None
    node_id: str | None = None
    attempt: int | None = None
    token: int | None = None
    cause: str | None = None
    detail: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class MetricRow:
    job_id: str
    attempt: int
    at: float
    values: dict[str, Any]


@dataclass
class Tables:
    """`now` is the database's clock; `next_token` and `next_seq` may be replaced by what another record gave."""

    now: Callable[[], float]
    epoch: int = 0
    jobs: dict[str, JobRow] = field(default_factory=dict)
    keys: dict[tuple[str, str], str] = field(default_factory=dict)
    attempts: dict[int, AttemptRow] = field(default_factory=dict)
    #: of gangs, by token
    members: dict[int, MemberRow] = field(default_factory=dict)
    #: tokens of attempts under way, in their order
    live: dict[int, None] = field(default_factory=dict)
    pending: dict[str, None] = field(default_factory=dict)
    nodes: dict[str, NodeRow] = field(default_factory=dict)
    events: list[EventRow] = field(default_factory=list)
    metrics: list[MetricRow] = field(default_factory=list)
    _tokens: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _seqs: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def next_token(self, job_id: str) -> int:
        return next(self._tokens)

    def next_seq(self, job_id: str) -> int:
        return next(self._seqs)


class Tx:
    """What the functions of this package get where those of `db` get a connection."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.now = tables.now()
        #: the server has ended the session: all is undone, and nothing more can be done
        self.aborted = False
        self._undo: list[Callable[[], Any]] = []

    @property
    def changed(self) -> bool:
        return bool(self._undo)

    def execute(self, *_: Any, **__: Any) -> NoReturn:
        raise AssertionError("this function of `db` has no twin in tests/simulation/memory_db: write one")

    scalar = execute

    def change(self, row: Any) -> Any:
        """The row, to be changed: a rollback brings back what it holds now."""
        before = copy(row)

        def restore() -> None:
            for name in row.__slots__:
                setattr(row, name, getattr(before, name))

        self._undo.append(restore)
        return row

    def put(self, table: dict[Any, Any], key: Any, row: Any) -> None:
        table[key] = row
        self._undo.append(lambda: table.pop(key, None))

    def drop(self, table: dict[Any, None], key: Any) -> None:
        """Take a key out of an index."""
        if key in table:
            del table[key]
            self._undo.append(lambda: table.setdefault(key, None))

    def append(self, rows: list[Any], row: Any) -> None:
        rows.append(row)
        self._undo.append(rows.pop)

    def log(self, epoch: int, actor: str, from_state: str | None, to_state: str | None, **fields: Any) -> None:
        self.append(self.tables.events, EventRow(epoch, actor, from_state, to_state, self.now, **fields))

    def rollback(self) -> None:
        while self._undo:
            self._undo.pop()()

    def abort(self) -> None:
        self.rollback()
        self.aborted = True


@contextmanager
def fenced(tables: Tables, epoch: int) -> Iterator[Tx]:
    """`db.fenced.fenced`: a transaction under an epoch. Raises NotLeader."""
    if tables.epoch != epoch:
        message = f"epoch {epoch} is over, epoch {tables.epoch} leads: stop and stand by"
        raise NotLeader(message, epoch=epoch, current=tables.epoch)
    tx = Tx(tables)
    try:
        yield tx
    except BaseException:
        tx.rollback()
        raise


def assert_current(tx: Tx, epoch: int) -> None:
    """`db.leadership.assert_current`."""
    current = tx.tables.epoch
    if current != epoch:
        raise NotLeader(f"epoch {epoch} is over and {current} leads: stop and stand by", epoch=epoch, current=current)
