"""Processes that die, or stall, exactly between two steps: failpoints of the product, one kind of fault each."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import ClassVar

from tests.chaos.faults.fault import PATIENCE_SECONDS, Fault
from tests.chaos.schedule import Kind

#: what a plan reckons with for a process that dies and comes back
_SECONDS = 4.0


class _At(Fault):
    """Arms `point`, provokes whatever leads there, and waits until it struck."""

    point: ClassVar[str]
    order: ClassVar[str] = ""
    patience_seconds: ClassVar[float] = PATIENCE_SECONDS

    @property
    def folder(self) -> Path:
        raise NotImplementedError

    def provoke(self) -> None:
        """Make the point be passed, where that does not happen all the time."""

    def inject(self) -> None:
        armed = self.folder / self.point
        part = armed.with_suffix(".part")
        part.write_text(self.order)
        part.replace(armed)
        self.provoke()
        if self.until(lambda: not armed.exists(), self.patience_seconds):
            self.proof = {"failpoint": self.point, "struck": True}

    def heal(self) -> None:
        (self.folder / self.point).unlink(missing_ok=True)


class LeaderAt(_At):
    @property
    def folder(self) -> Path:
        return self.stack.schedulers[0].failpoints  # all schedulers share it: only the leader comes by


class LeaderAtChange(LeaderAt):
    """A point that is passed when leadership changes."""

    def provoke(self) -> None:
        leader = self.stack.leader()
        if leader is not None:
            os.kill(leader.pid, signal.SIGKILL)


class LeaderAtLoss(LeaderAt):
    """A point that is passed when attempts are lost."""

    patience_seconds = 20.0

    def provoke(self) -> None:
        if self.node_at_work():
            os.kill(self.node.pid, signal.SIGKILL)


class AgentAt(_At):
    @property
    def folder(self) -> Path:
        return self.node.failpoints


class AgentAtStart(AgentAt):
    patience_seconds = 25.0

    def provoke(self) -> None:
        if self.node_at_work():
            os.kill(self.node.pid, signal.SIGKILL)


class AgentAtStop(AgentAt):
    patience_seconds = 25.0

    def provoke(self) -> None:
        if self.node_at_work():
            os.kill(self.node.pid, signal.SIGTERM)


def _at(base: type[_At], point: str, scope: str, needs: tuple[str, ...] = (), order: str = "") -> type[Fault]:
    verb = "stalls" if order else "dies"
    kind = Kind(f"{point.replace('.', f'_{verb}_')}", scope, (_SECONDS, _SECONDS), needs)
    return type(kind.name, (base,), {"point": point, "order": order, "kind": kind})


KINDS: tuple[type[Fault], ...] = (
    *(
        _at(LeaderAt, f"scheduler.{point}", "scheduler")
        for point in ("moved", "after_take", "before_commit", "after_commit", "after_publish", "renewing")
    ),
    _at(LeaderAtChange, "scheduler.loading", "scheduler"),
    _at(LeaderAtLoss, "scheduler.losing", "scheduler", ("node0", "node1", "node2")),
    # Longer than the server lets a silent session live: the next leader has taken over by the time it goes on.
    _at(LeaderAt, "scheduler.before_commit", "scheduler", order="sleep 13"),
    _at(LeaderAt, "scheduler.after_commit", "scheduler", order="sleep 13"),
    *(
        _at(AgentAt, f"agent.{point}", "node")
        for point in ("after_accept", "before_handover", "before_report", "after_ended", "after_confirm")
    ),
    *(_at(AgentAtStart, f"agent.{point}", "node") for point in ("before_register", "after_register")),
    _at(AgentAtStop, "agent.after_left", "node"),
    # Past the lease, between the end of a job and the report of it.
    _at(AgentAt, "agent.before_report", "node", order="sleep 9"),
)
