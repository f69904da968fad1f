"""Waiting jobs that may not be placed yet, because others must end first. Pure: who waits for whom, no more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from broker.scheduler.backlog import Waiting


class Dependencies:
    """A copy of what the record has not decided yet."""

    def __init__(self) -> None:
        #: by job, the jobs that must end before it may be placed; and the other way round
        self._unmet: dict[str, set[str]] = {}
        self._awaited_by: dict[str, set[str]] = defaultdict(set)
        #: those that would wait for a node by now, or for their time (monotonic), which may come while they are here
        self._held: dict[str, tuple[Waiting, float | None]] = {}

    def __contains__(self, job_id: str) -> bool:
        """Whether a job waits here."""
        return job_id in self._held

    def __len__(self) -> int:
        return len(self._held)

    def expect(self, job_id: str, on_id: str) -> None:
        """A job must not be placed before another has ended."""
        self._unmet.setdefault(job_id, set()).add(on_id)
        self._awaited_by[on_id].add(job_id)

    def hold(self, waiting: Waiting, due: float | None) -> bool:
        """Keep a job that must not be placed yet. False: nothing is in its way here."""
        if waiting.job_id not in self._unmet:
            return False
        self._held[waiting.job_id] = (waiting, due)
        return True

    def let_go(self, job_id: str) -> bool:
        """A job waits no longer. False: it did not wait here."""
        return self._held.pop(job_id, None) is not None

    def held(self) -> Iterator[Waiting]:
        """The jobs that wait here."""
        return (waiting for waiting, _ in self._held.values())

    def awaited(self, job_ids: Iterable[str]) -> list[str]:
        """Those of these jobs that others wait for."""
        return [job_id for job_id in dict.fromkeys(job_ids) if job_id in self._awaited_by]

    def met(self, job_id: str, on_id: str) -> tuple[Waiting, float | None] | None:
        """A job has ended as another one asked; that one, with its time, if this was the last that it waited for."""
        unmet = self._unmet.get(job_id)
        if unmet is None:
            return None
        self._drop(job_id, on_id)
        unmet.discard(on_id)
        if unmet:
            return None
        del self._unmet[job_id]
        return self._held.pop(job_id, None)

    def forget(self, job_id: str) -> None:
        """A job has ended: it waits for nobody."""
        for on_id in self._unmet.pop(job_id, ()):
            self._drop(job_id, on_id)
        self._held.pop(job_id, None)

    def _drop(self, job_id: str, on_id: str) -> None:
        dependents = self._awaited_by[on_id]
        dependents.discard(job_id)
        if not dependents:
            del self._awaited_by[on_id]
