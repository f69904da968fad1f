"""Jobs whose placement fails are parked, so that all others are placed: a kind of jobs by its shape, or one by its id.

Such a failure is a fault of the scheduler, or comes of what a node says of itself, and the record knows nothing of it:
the jobs wait on, and are tried again after a minute, which doubles each time; the next leader tries at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from broker.scheduler.backlog import Waiting
from broker.scheduler.failures import is_momentary, is_poison
from cyxwiz_tasks.cli.durations import show_seconds

_FIRST_SECONDS, _CAP_SECONDS = 60.0, 3600.0


class PlacingFailed(Exception):
    """Placement failed for jobs of one shape, or while these jobs were recorded; neither: nobody knows for whom."""

    def __init__(self, error: Exception, shape: str | None = None, job_ids: Sequence[str] = ()) -> None:
        super().__init__(type(error).__name__)
        self.error, self.shape, self.job_ids = error, shape, job_ids

    @property
    def key(self) -> str | None:
        """What is to be parked, if that is known."""
        return self.shape or (self.job_ids[0] if len(self.job_ids) == 1 else None)


@contextmanager
def blaming(shape: str | None = None, job_ids: Sequence[str] = ()) -> Iterator[None]:
    """What fails in here failed to be placed; not so what a server or another leader is to blame for."""
    try:
        yield
    except PlacingFailed:
        raise
    except Exception as error:
        if is_momentary(error) or not is_poison(error):
            raise
        raise PlacingFailed(error, shape, job_ids) from error


@dataclass
class _Pause:
    #: moments of `time.monotonic()`
    until: float
    seconds: float
    why: str


class Parked:
    """By shape or job id, who is not placed for now. It outlives what the leader reads of the record."""

    def __init__(self) -> None:
        self._pauses: dict[str, _Pause] = {}

    def park(self, failed: PlacingFailed, least_seconds: float) -> float:
        """Let the one that is to blame wait; for how long. `failed.key` must be known."""
        assert failed.key is not None
        before = self._pauses.get(failed.key)
        seconds = min(max(2 * before.seconds if before is not None else _FIRST_SECONDS, least_seconds), _CAP_SECONDS)
        self._pauses[failed.key] = _Pause(time.monotonic() + seconds, seconds, type(failed.error).__name__)
        return seconds

    def until(self, waiting: Waiting) -> float | None:
        """When (monotonic) a job is tried again; None: it is not parked."""
        pause = self._of(waiting)
        return pause.until if pause is not None and pause.until > time.monotonic() else None

    def story(self, waiting: Waiting) -> str | None:
        """What is told of a job that is parked; None: it is not."""
        pause = self._of(waiting)
        if pause is None or self.until(waiting) is None:
            return None
        again = show_seconds(pause.until - time.monotonic())
        return (
            f"The scheduler failed when it was to place this job ({pause.why}), and sets it aside so that others are "
            f"placed. It is tried again in {again}, and whenever the scheduler is started anew: its log says more, "
            "event=parked."
        )

    def _of(self, waiting: Waiting) -> _Pause | None:
        if not self._pauses:
            return None
        return self._pauses.get(waiting.resources.shape) or self._pauses.get(waiting.job_id)
