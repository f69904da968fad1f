"""Whether a job hangs: no report for much longer than its own pace lets expect."""

from __future__ import annotations

import statistics
from collections import deque

#: So often must a job have reported before its pace says anything; what it does before may take as long as it likes.
REPORTS_NEEDED = 5
#: the pace is that of its newest reports: an epoch's last step may be followed by a long validation
_PAUSES_KEPT = 100


class Pace:
    """The times of one job's reports, by the monotonic clock."""

    def __init__(self, floor_seconds: float, factor: float) -> None:
        self._floor_seconds, self._factor = floor_seconds, factor
        self._reports = 0
        self._last_at = 0.0
        self._pauses: deque[float] = deque(maxlen=_PAUSES_KEPT)

    def reported(self, at: float) -> None:
        if self._reports:
            self._pauses.append(at - self._last_at)
        self._reports += 1
        self._last_at = at

    def lives(self, at: float) -> None:
        """It said something else: it is alive, and its pace is what it was."""
        self._last_at = at

    def hangs_at(self) -> float | None:
        """When it counts as hung unless it reports before; None while nothing is known of its pace."""
        if self._reports < REPORTS_NEEDED:
            return None
        return self._last_at + max(self._floor_seconds, self._factor * statistics.median(self._pauses))
