"""What attempts hold becomes what their owners had, so that whose turn it is follows time."""

from __future__ import annotations

from typing import ClassVar

from broker.scheduler.duties.duty import Duty


class Usage(Duty):
    #: an attempt that lasts less is counted for all of it or for nothing, which is right on average
    every_seconds: ClassVar[float] = 1.0

    def run_once(self) -> dict[str, int]:
        self.leader.memory.settle()
        return {}
