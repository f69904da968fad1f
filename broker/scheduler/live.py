"""Attempts under way, as the leader has them in memory; how a member of a gang ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from broker.scheduler.backlog import Waiting
from broker.scheduler.holder import holder
from cyxwiz_tasks.protocol.controls import Stop
from cyxwiz_tasks.protocol.reports import Ended


@dataclass(slots=True, eq=False)
class Live:
    """An attempt under way, or one member of a gang's. Moments are of `time.monotonic()`."""

    token: int
    number: int
    node_id: str
    incarnation: str
    gpus: tuple[int, ...]
    waiting: Waiting
    running: bool
    assigned_at: float
    #: how often its message was put into the node's queue, and when for the last time
    publications: int
    published_at: float
    cancel_asked: bool = False
    #: what its node was told, and when for the last time
    stop: Stop | None = None
    stop_said_at: float = 0.0
    #: of a gang: which member this is, all of them by rank, and how this one ended, while others have not
    rank: int = 0
    gang: tuple[Live, ...] = ()
    ended: MemberEnd | None = None
    #: it was told to end because another member had ended, and for nothing else
    follows: bool = False
    #: when its newest checkpoint was whole, to a second or so; None: its node, which tells it by its beats, told of
    #: none yet. Of a gang rank 0 writes it, for all
    checkpointed_at: float | None = None

    @property
    def job_id(self) -> str:
        return self.waiting.job_id

    @property
    def holder(self) -> str:
        """The name under which it holds its place."""
        return holder(self.waiting.job_id, self.rank)

    @property
    def identity(self) -> dict[str, Any]:
        """The fields with which every report of it begins."""
        return {
            "node": self.node_id,
            "incarnation": self.incarnation,
            "job": self.job_id,
            "attempt": self.number,
            "token": self.token,
        }

    @property
    def together(self) -> tuple[Live, ...]:
        """All that begin and end with it: the members of its gang, or itself alone."""
        return self.gang or (self,)

    @property
    def must_end(self) -> bool:
        """Whether it was cancelled, or told to end for another reason."""
        return self.cancel_asked or self.stop is not None

    def saved(self, at: float) -> None:
        """Its newest checkpoint was whole at this moment, and with it that of its whole gang."""
        for one in self.together:
            one.checkpointed_at = at

    def lost_seconds(self, now: float) -> float:
        """Work since its newest checkpoint, or since it was placed, of all that would have to end with it."""
        since = self.assigned_at if self.checkpointed_at is None else self.checkpointed_at
        return (now - since) * len(self.together)


class MemberEnd(NamedTuple):
    """How a member of a gang ended."""

    report: Ended
    #: the whole gang had been told to end before, so what it says is no reason of its own
    was_told: bool = False
    #: it had been told to end because another member had
    followed: bool = False
    #: its node did not say so: the scheduler took its place back
    taken_back: bool = False

    @classmethod
    def recorded(cls, row: dict[str, Any]) -> MemberEnd:
        """Of what `row` had put into the record."""
        return cls(Ended.model_validate(row), *(bool(row.get(name)) for name in cls._fields[1:]))

    @property
    def row(self) -> dict[str, Any]:
        """What the record gets of it."""
        flags = {name: True for name in self._fields[1:] if getattr(self, name)}
        return self.report.model_dump(mode="json", exclude_defaults=True) | flags
