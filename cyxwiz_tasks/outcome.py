"""How a job ended, as its submitter gets it: the value, or the exception to raise."""

from __future__ import annotations

from typing import Any

from cyxwiz_tasks.errors import JobCancelled, JobFailed
from cyxwiz_tasks.protocol.names import TRAIN_TASK
from cyxwiz_tasks.states import Cause, JobState
from cyxwiz_tasks.training_result import TrainingResult


def value_of(task: str | None, value: Any) -> Any:
    """What a job's function returned; a TrainingResult for a training."""
    if task == TRAIN_TASK and isinstance(value, dict):
        return TrainingResult.parse(value)
    return value


def failure_of(error: BaseException, record: dict[str, Any] | None, traceback: str | None) -> BaseException:
    """The job's own exception, with its traceback as a note; a JobFailed gets its cause from the record."""
    if isinstance(error, JobFailed):
        error.cause = str((record or {}).get("cause") or error.cause)
        error.traceback = traceback
    if traceback and not getattr(error, "__notes__", None):
        error.add_note(f"In the job's process:\n{traceback.rstrip()}")
    return error


def cancelled(record: dict[str, Any] | None) -> JobCancelled:
    """The exception for a job that was cancelled, with the reason that somebody gave."""
    facts = record or {}
    words = facts.get("cancel_reason") or facts.get("message")
    verb = "expired before it could start" if facts.get("cause") == Cause.EXPIRED else "was cancelled"
    return JobCancelled(f"job {facts['id']} {verb}" + (f": {words}" if words else "") if facts else None)


def from_record(record: dict[str, Any]) -> Any:
    """The value of a job that has ended, out of its record alone.

    Raises JobFailed and JobCancelled: the user's own exception type is known to Redis only.
    """
    match record["state"]:
        case JobState.COMPLETED:
            return value_of(record.get("task"), record.get("result"))
        case JobState.CANCELLED:
            raise cancelled(record)
        case _:
            text = record.get("message") or record.get("exception") or f"job {record['id']} failed"
            traceback = record.get("traceback")
            raise failure_of(JobFailed(text), record, traceback)
