"""What every periodic duty of the leader looks like."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from broker.scheduler.leader import Leader


class Duty:
    """Run by the main loop about every `every_seconds`, between turns; it must be quick."""

    every_seconds: ClassVar[float]

    def __init__(self, leader: Leader) -> None:
        self.leader = leader

    def run_once(self) -> dict[str, int]:
        """Do what is due; how many of what, for the log."""
        raise NotImplementedError

    def redis_is_back(self) -> None:
        """Redis was away or has just been met: what it knew may be old or gone."""
