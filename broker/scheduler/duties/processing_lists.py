"""Messages that an older leader had taken: a frozen one may take one more after its successor has looked."""

from __future__ import annotations

from typing import ClassVar

from broker.scheduler.duties.duty import Duty


class ProcessingLists(Duty):
    every_seconds: ClassVar[float] = 2.0

    def run_once(self) -> dict[str, int]:
        inbox, redis = self.leader.inbox, self.leader.redis
        # Also for the case that Redis has lost its memory since the sources started.
        inbox.remember(redis)
        return {"given_back": inbox.give_back(redis)}
