"""Clocks that jump and disks that are full."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import ClassVar

from tests.chaos.clock import library, set_clock
from tests.chaos.faults.fault import Fault
from tests.chaos.schedule import Kind
from tests.chaos.stack import Member, Stack

_JUMP_SECONDS = 2 * 3600


class _ClockJump(Fault):
    """The wall clock of one process is two hours off, and comes back."""

    offset_seconds: ClassVar[int]

    @classmethod
    def missing(cls, stack: Stack) -> str | None:
        return None if library() is not None else "libfaketime"

    def member(self) -> Member:
        return self.stack.nodes[-1]

    def inject(self) -> None:
        member = self.member()
        if member.clock is None or not member.alive():
            return
        set_clock(member.clock, self.offset_seconds)
        with open(f"/proc/{member.pid}/maps") as maps:
            if "libfaketime" in maps.read():
                self.proof = {"service": member.name, "offset_seconds": self.offset_seconds}

    def heal(self) -> None:
        member = self.member()
        if member.clock is not None:
            set_clock(member.clock, 0)


class NodeAhead(_ClockJump):
    kind = Kind("node_clock_ahead", "node_clock", (3.0, 8.0))
    offset_seconds = _JUMP_SECONDS


class NodeBehind(_ClockJump):
    kind = Kind("node_clock_behind", "node_clock", (3.0, 8.0))
    offset_seconds = -_JUMP_SECONDS


class SchedulerAhead(_ClockJump):
    kind = Kind("scheduler_clock_ahead", "scheduler_clock", (3.0, 8.0))
    offset_seconds = _JUMP_SECONDS

    def member(self) -> Member:
        return self.stack.schedulers[-1]


class SchedulerBehind(SchedulerAhead):
    kind = Kind("scheduler_clock_behind", "scheduler_clock", (3.0, 8.0))
    offset_seconds = -_JUMP_SECONDS


class DiskFull(Fault):
    """Not a byte is left in a node's folder, and then there is room again."""

    kind = Kind("disk_full", "node0", (1.0, 5.0))

    @classmethod
    def missing(cls, stack: Stack) -> str | None:
        return None if os.path.ismount(stack.nodes[0].home) else "a small file system (root may mount one)"

    def inject(self) -> None:
        folder = self.stack.nodes[0].home
        self._filler = folder / "filler"
        written, refused = 0, None
        with open(self._filler, "wb", buffering=0) as file:
            while refused is None:
                try:
                    written += file.write(b"\0" * 2**16)
                except OSError as error:
                    refused = error.errno
            with suppress(OSError):
                while True:
                    written += file.write(b"\0" * 64)
        self.proof = {"bytes": written, "errno": refused}

    def heal(self) -> None:
        if hasattr(self, "_filler"):
            self._filler.unlink(missing_ok=True)


KINDS: tuple[type[Fault], ...] = (NodeAhead, NodeBehind, SchedulerAhead, SchedulerBehind, DiskFull)
