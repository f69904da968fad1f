"""The jobs that must have ended by some moment, by the clock of this process: PostgreSQL says what is left."""

from __future__ import annotations

import time
from heapq import heappop, heappush


class Deadlines:
    """Moments are of `time.monotonic()`."""

    def __init__(self) -> None:
        self._of_job: dict[str, float] = {}
        self._coming: list[tuple[float, str]] = []
        #: past their deadline, and not known to have ended; since when that is known
        self.overdue: dict[str, float] = {}

    def expect(self, job_id: str, left_seconds: float | None) -> None:
        """Wake up when a job must have ended; None: it has no deadline."""
        if left_seconds is not None:
            moment = self._of_job[job_id] = time.monotonic() + left_seconds
            heappush(self._coming, (moment, job_id))

    def forget(self, job_id: str) -> None:
        """The job has ended."""
        self._of_job.pop(job_id, None)
        self.overdue.pop(job_id, None)

    def left_seconds(self, job_id: str) -> float | None:
        """What is left until a job's deadline, perhaps less than nothing; None: it has none."""
        moment = self._of_job.get(job_id)
        return None if moment is None else moment - time.monotonic()

    def look(self) -> dict[str, float]:
        """The jobs that are past their deadline, each with the moment at which that was seen first: of what ended while
        nobody led, the word may still be on its way.
        """
        while self._coming and self._coming[0][0] <= time.monotonic():
            moment, job_id = heappop(self._coming)
            if self._of_job.get(job_id) == moment:
                self.overdue[job_id] = time.monotonic()
        return self.overdue

    @property
    def next_moment(self) -> float | None:
        return self._coming[0][0] if self._coming else None
