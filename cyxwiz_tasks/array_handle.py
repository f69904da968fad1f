"""ArrayHandle: the jobs of one array, together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, overload

from cyxwiz_tasks.handle import JobHandle
from cyxwiz_tasks.ids import member_id

if TYPE_CHECKING:
    from cyxwiz_tasks.client import Client

#: jobs that one question to the record asks for
_PAGE_ROWS = 1000


class ArrayHandle:
    """A sequence of the handles of its jobs. Methods raise ServerUnavailable, SchedulerUnavailable."""

    def __init__(self, client: Client, id: str, size: int, task: str | None = None) -> None:
        self.client, self.id, self.size = client, id, size
        #: the Celery task's name, where it is known
        self.task = task

    def __repr__(self) -> str:
        return f"<ArrayHandle {self.id}: {self.size} jobs>"

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[JobHandle]:
        return (self[index] for index in range(self.size))

    @overload
    def __getitem__(self, index: int) -> JobHandle: ...

    @overload
    def __getitem__(self, index: slice) -> list[JobHandle]: ...

    def __getitem__(self, index: int | slice) -> JobHandle | list[JobHandle]:
        """The job with this number, from 0 on. Raises IndexError."""
        found = range(self.size)[index]
        if isinstance(found, range):
            return [self[one] for one in found]
        return JobHandle(self.client, member_id(self.id, found), self.task)

    def record(self) -> dict[str, Any]:
        """What the record knows: name, owner, size, at_most, and `counts` of its jobs by state. Raises NotFound."""
        return dict(self.client.requests.query("array", id=self.id))

    def counts(self) -> dict[str, int]:
        """How many of its jobs are pending, assigned, running, completed, failed, cancelled, held. Raises NotFound."""
        return dict(self.record()["counts"])

    def jobs(self) -> Iterator[dict[str, Any]]:
        """The records of its jobs, by their indexes."""
        index = -1
        while rows := self.client.jobs(array=self.id, after_index=index, limit=_PAGE_ROWS):
            yield from rows
            index = rows[-1]["array_index"]

    def results(self, timeout: float | None = None, *, return_errors: bool = False) -> list[Any]:
        """Wait for all; what each returned, in their order.

        Raises the first error that a job's `result()` raises, unless with `return_errors` it stands in the list, and
        TimeoutError after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        found: list[Any] = []
        for handle in self:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                found.append(handle.result(left))
            except Exception as error:
                time_is_up = isinstance(error, TimeoutError) and deadline is not None and time.monotonic() >= deadline
                if time_is_up or not return_errors:
                    raise
                found.append(error)
        return found

    def cancel(self, reason: str = "") -> int:
        """End all that has not ended; of how many jobs that was asked. Raises NotFound."""
        return self.client.cancel_array(self.id, reason)
