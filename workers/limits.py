"""When an attempt's time is up, and for which reason. Times are of the monotonic clock."""

from __future__ import annotations

from typing import Literal

from workers.hung import Pace

#: It ran longer than it may, did not end by its job's deadline, hangs, or its node hears nothing of the broker.
Reason = Literal["time_limit", "deadline", "hung", "cut_off"]


class Limits:
    """The job has no say in these: they end it whatever it does."""

    def __init__(
        self,
        *,
        time_limit_at: float | None = None,
        deadline_at: float | None = None,
        pace: Pace,
        alone_seconds: float,
    ) -> None:
        """`alone_seconds` after the broker was heard last, the node gives up on hearing it again."""
        self._fixed: list[tuple[float, Reason]] = []
        if time_limit_at is not None:
            self._fixed.append((time_limit_at, "time_limit"))
        if deadline_at is not None:
            self._fixed.append((deadline_at, "deadline"))
        self._pace, self._alone_seconds = pace, alone_seconds

    def next(self, heard_at: float) -> tuple[float, Reason]:
        """The first that is due if nothing is heard, neither of the job nor of the broker, and when."""
        due = [*self._fixed, (heard_at + self._alone_seconds, "cut_off")]
        hangs_at = self._pace.hangs_at()
        if hangs_at is not None:
            due.append((hangs_at, "hung"))
        return min(due)

    def passed(self, now: float, heard_at: float) -> Reason | None:
        """The reason for which an attempt ends now, or None."""
        at, reason = self.next(heard_at)
        return reason if now >= at else None
