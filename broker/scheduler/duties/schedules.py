"""Jobs of schedules are sent when their moment has come."""

from __future__ import annotations

import time
from typing import ClassVar

from broker.scheduler.duties.duty import Duty
from broker.scheduler.scheduling import fire


class Schedules(Duty):
    every_seconds: ClassVar[float] = 0.5

    def run_once(self) -> dict[str, int]:
        if self.leader.memory.next_firing > time.monotonic():
            return {}
        with self.leader.turn() as turn:
            fired = fire(turn)
        return {"fired": fired}
