"""Every error of this project, with one base class.

The docstring of a class is its default message. Facts that a program may want are attributes; the message says what
happened, to which field or thing, and what to do next.
"""

from __future__ import annotations

from typing import Any


class CyxwizError(Exception):
    """Something went wrong in CyxWiz Tasks."""

    def __init__(self, message: str | None = None, **facts: Any) -> None:
        text = message if message is not None else (type(self).__doc__ or "").strip().splitlines()[0]
        super().__init__(text)
        self.message = text
        for name, value in facts.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        return self.message


class InvalidJob(CyxwizError, ValueError):
    """A job was refused because one of its fields is wrong."""

    def __init__(self, field: str, reason: str, hint: str = "") -> None:
        super().__init__(f"{field}: {reason}" + (f". {hint}" if hint else ""))
        self.field, self.reason, self.hint = field, reason, hint
        # What pickle and Celery build it again from.
        self.args = (field, reason, hint)


class WrongArguments(InvalidJob, TypeError):
    """A job's function does not take these arguments."""


class InvalidSettings(CyxwizError, ValueError):
    """A CYXWIZ_* setting or a command's option has a value that cannot be used."""


class JobConflict(CyxwizError):
    """The id of this job is already taken by a different job: choose another id, or leave it out."""


class JobRefused(CyxwizError):
    """The scheduler refused this job."""


class LimitReached(CyxwizError):
    """The owner of this job has as many as he may have."""


class SchedulerUnavailable(CyxwizError):
    """No scheduler answered in time: see that `cyxwiz up` or `cyxwiz scheduler` runs. The job may still be accepted."""


class ServerUnavailable(CyxwizError):
    """A server that is needed (Redis, PostgreSQL) does not answer or is not installed."""


class NoStack(CyxwizError):
    """No stack is known here: start one with `cyxwiz up`, or set CYXWIZ_BROKER_URL to the broker of a running one."""


class NotFound(CyxwizError, LookupError):
    """There is no such job or node: `cyxwiz jobs` and `cyxwiz nodes` list what there is."""


class ProtocolError(CyxwizError):
    """A message has a form that this version does not understand."""


class JobFailed(CyxwizError):
    """The job ended without a result.

    `cause` is one of `cyxwiz_tasks.states.Cause`; `traceback` is the job's own, where it raised one.
    """

    cause: str = "error"
    traceback: str | None = None


class ResultRefused(JobFailed):
    """The job's function returned what cannot be kept as a result: the job is not tried again for it."""


class JobCancelled(CyxwizError):
    """The job was cancelled."""


class NotLeader(CyxwizError):
    """Another scheduler leads by now: nothing that this one writes counts any more."""


class DataError(CyxwizError, ValueError):
    """The data set cannot be read as asked."""


class DataRefused(DataError):
    """The data set lies where jobs may not read: outside the node's data folders, or at a private address."""


class CheckpointUnusable(CyxwizError):
    """The newest checkpoint is whole, but this job cannot go on from it: submit it anew to start from the beginning."""


class TrainingDiverged(CyxwizError):
    """The loss is no longer a finite number: try a lower learning rate, clip_norm=1.0, or precision="fp32"."""
