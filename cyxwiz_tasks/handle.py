"""JobHandle: everything that can be asked of one job.

States, progress and results are pushed: reads block in Redis. All of that is a live view that Redis may lose; the
record is asked where Redis does not know (any more), and every few seconds of silence.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import redis
from celery import exceptions
from celery.result import AsyncResult

from cyxwiz_tasks import outcome
from cyxwiz_tasks.broker_connection import BLOCK_SECONDS, reached
from cyxwiz_tasks.errors import NotFound, SchedulerUnavailable, ServerUnavailable
from cyxwiz_tasks.explanation import Explanation
from cyxwiz_tasks.job_update import JobUpdate
from cyxwiz_tasks.outages import outliving
from cyxwiz_tasks.protocol.names import log_key, progress_key
from cyxwiz_tasks.protocol.updates import Update
from cyxwiz_tasks.states import TERMINAL_JOB_STATES
from cyxwiz_tasks.streams import entries, read

if TYPE_CHECKING:
    from cyxwiz_tasks.client import Client

#: Celery's word for "the result backend does not know this task".
_UNKNOWN = "PENDING"
#: At least so long a scheduler has to answer, however short the time in which a result was wanted.
_ANSWER_SECONDS = 1.0


class JobHandle:
    """One job by its id, which is also its Celery task id.

    Methods raise ServerUnavailable if Redis does not answer; those that wait for the job wait for Redis, too.
    """

    def __init__(self, client: Client, id: str, task: str | None = None, *, ignore_result: bool = False) -> None:
        self.client, self.id = client, id
        #: the Celery task's name, where it is known
        self.task = task
        self._ignore_result = ignore_result

    def __repr__(self) -> str:
        return f"<JobHandle {self.id}>"

    @property
    def async_result(self) -> AsyncResult:
        """Celery's own view of the job."""
        return self.client.app.AsyncResult(self.id)

    @property
    def state(self) -> str:
        """Celery's name of the job's state: ACCEPTED, ASSIGNED, STARTED, PROGRESS, RETRY, SUCCESS, FAILURE, REVOKED.

        PENDING is a job that nobody has recorded yet.
        """
        state = self._known_state()
        if state != _UNKNOWN:
            return state
        try:
            return str(self.record()["celery_state"])
        except NotFound:
            return _UNKNOWN

    def record(self, timeout: float | None = None) -> dict[str, Any]:
        """What the record knows: state, cause, message, times, result, attempts.

        Raises NotFound, SchedulerUnavailable.
        """
        return self.client.job(self.id, timeout=timeout)

    def progress(self) -> Iterator[JobUpdate]:
        """Every update from the job's first on, as they come; ends with the job, by an update of kind "end".

        Where Redis has lost them, those that the record keeps.
        """
        seen = False
        for fields in entries(self.client.requests, progress_key(self.id), self._is_over):
            seen = True
            update = JobUpdate(Update.model_validate_json(fields[b"update"]))
            yield update
            if update.kind == "end":
                return
        yield from self._recorded_progress(metrics_too=not seen)

    def logs(self, follow: bool = False, rank: int = 0) -> Iterator[str]:
        """Pieces of what the job's processes wrote, from the first on; with `follow` until the job has ended.

        Of a job on several nodes, those of the member with this rank. Kept for CYXWIZ_RESULT_TTL_SECONDS after the job.
        """
        for fields in entries(self.client.requests, log_key(self.id, rank), self._is_over if follow else None):
            if b"text" in fields:
                yield fields[b"text"].decode(errors="replace")
            if b"end" in fields:
                return

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the end; return what the function returned, or a TrainingResult.

        Raises the job's own exception with its traceback as a note, JobFailed (see its `cause`) where the job's process
        did not end by an exception of its own, JobCancelled, and TimeoutError after `timeout` seconds. A server that
        goes away meanwhile is waited for: ServerUnavailable is a Redis that has never answered this client.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                ended = outliving(self.client.requests, lambda: self._ended(_left(deadline)), deadline)
            except ServerUnavailable as error:
                if deadline is None or not self.client.requests.answered:
                    raise
                raise TimeoutError(f"job {self.id} is not known to have ended after {timeout:g} s: {error}") from error
            if ended is not None:
                return self._outcome(ended)
            record = self._record_if_over(max(_left(deadline), _ANSWER_SECONDS))
            if record is not None:
                return outcome.from_record(record)
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"job {self.id} is {self._shown_state()} after {timeout:g} s")

    def cancel(self, reason: str = "") -> None:
        """End the job wherever it is; on one that has ended it changes nothing. Raises NotFound."""
        self.client.cancel(self.id, reason)

    def release(self) -> None:
        """Put the job back into the queue if it is held. Raises NotFound, InvalidJob if it is not held."""
        self.client.release(self.id)

    def why(self) -> Explanation:
        """Where the job stands; while it waits, what would make it fit. Raises NotFound."""
        return self.client.why(self.id)

    def _known_state(self) -> str:
        """Of the job, so far as Redis knows it."""
        with reached(self.client.broker_url):
            self._must_answer()
            return str(self.async_result.state)

    def _shown_state(self) -> str:
        try:
            return self._known_state()
        except ServerUnavailable as error:
            return f"not known to have ended ({error})"

    def _must_answer(self) -> None:
        """Raises if Redis does not answer: Celery, whose nodes must not lose a result, would ask it for ever."""
        self.client.connection.ping()

    def _ended(self, seconds: float) -> AsyncResult | None:
        """Celery's result if the job ends within so many seconds; None if not, or if Celery will never know it."""
        self._must_answer()
        self.client.requests.answered = True
        result = self.async_result
        if self._ignore_result or result.state == _UNKNOWN:
            if self._record_if_over(max(seconds, _ANSWER_SECONDS)) is None:
                self._wait_on_stream(seconds)
            return None
        try:
            result.get(timeout=seconds or 0.001, propagate=False)
        except exceptions.TimeoutError:
            return None
        except RuntimeError as error:
            # Celery's word for a Redis that was away for longer than it tries.
            if not isinstance(error.__cause__, redis.RedisError):
                raise
            return None
        finally:
            # Celery would unsubscribe when the garbage collector finds the result: by then Redis may be gone.
            self.client.app.backend.remove_pending_result(result)
        if result.state == "SUCCESS":
            self._learn_form(max(seconds, _ANSWER_SECONDS))
        return result

    def _learn_form(self, seconds: float) -> None:
        """Let the record tell how to read the job's value: that of a training has a form of its own.

        Raises ServerUnavailable as long as nobody can tell.
        """
        if self.task is None:
            try:
                self.task = self.record(timeout=seconds).get("task")
            except NotFound:
                pass  # nor will it be known later: the record has forgotten the job
            except SchedulerUnavailable as error:
                raise ServerUnavailable(str(error)) from error

    def _wait_on_stream(self, seconds: float) -> None:
        """Wait for the end of a job that Celery never knows, or for the first word on one that it does not know yet."""
        key, connection = progress_key(self.id), self.client.connection
        until_end = self._ignore_result or (bool(connection.exists(key)) and self.async_result.state == _UNKNOWN)
        last, deadline = b"0", time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            found = read(connection, key, last, left)
            if any(not until_end or Update.model_validate_json(f[b"update"]).kind == "end" for _, f in found):
                return
            last = found[-1][0] if found else last

    def _outcome(self, ended: AsyncResult) -> Any:
        if ended.state == "SUCCESS":
            return outcome.value_of(self.task, ended.result)
        record = self._record_if_over()
        if ended.state == "REVOKED":
            raise outcome.cancelled(record)
        error = ended.result
        if not isinstance(error, BaseException):
            error = exceptions.TaskError(str(error))
        raise outcome.failure_of(error, record, ended.traceback)

    def _record_if_over(self, timeout: float = BLOCK_SECONDS) -> dict[str, Any] | None:
        """The record of a job that has ended; None if it has not, or as long as nobody can tell."""
        try:
            record = self.record(timeout=timeout)
        except (NotFound, SchedulerUnavailable, ServerUnavailable):
            # Not recorded yet; or the scheduler or PostgreSQL restarts, which is no reason to stop waiting for a job.
            return None
        return record if record["state"] in TERMINAL_JOB_STATES else None

    def _is_over(self) -> bool:
        return self._record_if_over() is not None

    def _recorded_progress(self, *, metrics_too: bool) -> Iterator[JobUpdate]:
        record = self.record()
        if metrics_too:
            for row in self.client.metrics(self.id):
                attempt, at = row.pop("attempt"), row.pop("at")
                yield JobUpdate(Update(kind="progress", state="PROGRESS", attempt=attempt, at=at, values=row))
        yield JobUpdate(Update(kind="end", state=record["celery_state"], message=record.get("message")))


def _left(deadline: float | None) -> float:
    """Seconds that one look may take."""
    return BLOCK_SECONDS if deadline is None else min(BLOCK_SECONDS, max(deadline - time.monotonic(), 0.0))
