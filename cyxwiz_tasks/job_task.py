"""`@job` and `JobTask`: a Celery task that says what hardware it needs.

Whatever way a job is sent (`delay`, `apply_async`, a chain, a chord, a retry), all that the scheduler must know is in
its message: a node that sends the next job of a chain has never seen that job's code. So the header is put into every
signature, and the options of one call (`priority=`, `resources=`, ...) are folded into it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from copy import copy
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, overload

from celery import Task
from celery.canvas import Signature

from cyxwiz_tasks.celery_app import INBOX_QUEUE, app
from cyxwiz_tasks.entry import Entry, entry_of
from cyxwiz_tasks.ids import new_id
from cyxwiz_tasks.job_header import JOB_OPTIONS, changed, fold, os_user
from cyxwiz_tasks.protocol.headers import JobHeader
from cyxwiz_tasks.protocol.names import INBOX
from cyxwiz_tasks.resources import Resources

if TYPE_CHECKING:
    from cyxwiz_tasks.handle import JobHandle

#: Of the options of one call, those that a task may set for all its calls.
_TASK_OPTIONS = tuple(name for name in JOB_OPTIONS if name not in ("name", "idempotency_key", "after"))
#: Celery's options that a task may set for all its calls, and that are part of a message.
_OWN_CELERY_OPTIONS = ("expires", "ignore_result")
#: The module of the tasks that come with this project: its functions need no entry.
_BUILTIN = "cyxwiz_tasks.builtin"


class JobTask(Task):  # type: ignore[misc]
    """Base class of every job: `@job`, or `@app.task(base=JobTask, resources=...)` in a Celery application of your own.

    A function whose first parameter is named `ctx` gets the job's context there; callers do not pass it.
    """

    abstract = True

    #: what the job needs of its node; `Resources`, or its fields as a dict
    resources: Resources = Resources()
    owner: str | None = None
    project: str | None = None
    #: whether the function's first parameter is `ctx`
    takes_context: bool = False
    entry: Entry | None = None
    #: the header that a call without further options sends; its owner is filled in when it is sent
    job_header: JobHeader = JobHeader()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__
        options = {name: own.get(name) for name in _TASK_OPTIONS}
        # Celery would send these two as its own options; a text as a priority is none that kombu knows.
        for name in ("priority", "time_limit"):
            if name in own:
                delattr(cls, name)
        cls.job_header = changed(cls.job_header, options)
        cls.resources = cls.job_header.resources
        if "_decorated_fun" in own:
            cls._learn(own["_decorated_fun"].__func__, bound=not isinstance(own["run"], staticmethod))

    @classmethod
    def _learn(cls, function: Callable[..., Any], bound: bool) -> None:
        if function.__module__ != _BUILTIN:
            cls.entry = entry_of(function)
            cls.job_header = cls.job_header.model_copy(update={"entry": cls.entry.text, "path": cls.entry.path})
        names = list(inspect.signature(function).parameters)[1 if bound else 0 :]
        cls.takes_context = names[:1] == ["ctx"]
        if cls.takes_context:
            # Celery checks a caller's arguments against this; the context is not the caller's to pass.
            cls.__header__ = staticmethod(partial(cls.__dict__["__header__"].__func__, None))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function here and now, without any service, with a local context."""
        if not self.takes_context:
            return super().__call__(*args, **kwargs)
        from cyxwiz_tasks.runtime.context import LocalContext

        return super().__call__(LocalContext(), *args, **kwargs)

    def run_job(self, ctx: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the function as a job: with `ctx` first if it asks for it. For the job's own process."""
        return self.run(ctx, *args, **kwargs) if self.takes_context else self.run(*args, **kwargs)

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Celery's own, with the options `resources`, `priority`, `time_limit`, `idempotency_key`, `name`, `owner` and
        `project` of this one job. Returns at once; `submit()` waits until the scheduler has recorded the job.

        Raises InvalidJob that names the option.
        """
        folded = self._folded(options)
        folded["task_id"] = folded.get("task_id") or new_id()
        # The object itself: an application of the user's own has not declared our queue.
        return super().apply_async(args, kwargs, **folded | {"queue": INBOX_QUEUE})

    def signature(self, args: Any = None, *rest: Any, **options: Any) -> Signature:
        """Celery's own; its options carry header and queue, for whoever sends it without knowing this task."""
        made = super().signature(args, *rest, **options)
        # What `apply_async` would add by itself.
        own = {name: value for name in _OWN_CELERY_OPTIONS if (value := getattr(self, name))}
        made["options"] = self._folded(own | made["options"]) | {"queue": INBOX}
        return made

    def signature_from_request(
        self, request: Any = None, args: Any = None, kwargs: Any = None, **options: Any
    ) -> Signature:
        """Celery's own, for a retry: back to the inbox, as the job it was, and not to the node that it ran on."""
        request = copy(self.request if request is None else request)
        # Every message of ours has kombu's priority 0; the job's own is in its header.
        request.delivery_info = {}
        return super().signature_from_request(request, args, kwargs, **options | {"queue": INBOX})

    def options(self, **options: Any) -> JobCall:
        """The same job with options for its next call: `finetune.options(priority="high").submit(rate=1e-4)`."""
        return JobCall(self, options)

    def submit(self, *args: Any, **kwargs: Any) -> JobHandle:
        """Send the job and wait until the scheduler has recorded it: from then on it cannot be lost.

        Raises InvalidJob, JobRefused, SchedulerUnavailable, ServerUnavailable, NoStack.
        """
        return self.options().submit(*args, **kwargs)

    def _folded(self, options: dict[str, Any]) -> dict[str, Any]:
        owner = self.job_header.owner or os_user()
        return fold(options, self.job_header.model_copy(update={"owner": owner}))


class JobCall:
    """A job's task and the options of one call."""

    def __init__(self, task: JobTask, options: dict[str, Any]) -> None:
        self.task, self.call_options = task, options

    def submit(self, *args: Any, **kwargs: Any) -> JobHandle:
        """Send the job and wait until the scheduler has recorded it. Raises what `JobTask.submit` raises."""
        from cyxwiz_tasks.client import client_of

        return client_of(self.task.app).submit(self.task.s(*args, **kwargs), **self.call_options)

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """Send the job and return at once. Returns Celery's AsyncResult."""
        return self.task.apply_async(args, kwargs, **self.call_options)

    def s(self, *args: Any, **kwargs: Any) -> Signature:
        """The job as a signature, for chains, groups and chords."""
        return self.task.signature(args, kwargs, dict(self.call_options))


@overload
def job(function: Callable[..., Any], /) -> JobTask: ...


@overload
def job(
    *,
    resources: Resources | dict[str, Any] | None = None,
    priority: str | int | None = None,
    time_limit: str | float | timedelta | None = None,
    start_by: str | float | timedelta | datetime | None = None,
    deadline: str | float | timedelta | datetime | None = None,
    max_retries: int | None = None,
    retry_on: Iterable[type[BaseException] | str] = (),
    no_retry_on: Iterable[type[BaseException] | str] = (),
    exclusive: bool | None = None,
    name: str | None = None,
    owner: str | None = None,
    project: str | None = None,
    **celery_options: Any,
) -> Callable[[Callable[..., Any]], JobTask]: ...


def job(
    function: Callable[..., Any] | None = None, /, **options: Any
) -> JobTask | Callable[[Callable[..., Any]], JobTask]:
    """Make a function a job: `@job`, or `@job(resources=Resources(gpus=1), priority="high", time_limit="4h")`.

    `max_retries` tries the job again after ends that are its own fault: of its exceptions those in `retry_on` (empty:
    all) and not in `no_retry_on`. `start_by`, `deadline` and `exclusive` are those of `Client.submit`. `name` is the
    task's name in Celery, by default its module and name; every other option is Celery's own (`bind`, `ignore_result`,
    `autoretry_for`, ...). Raises InvalidJob at once for an option that cannot be used
    and for a function that another process could not import.
    """
    if function is None:
        return partial(job, **options)
    found = entry_of(function)
    name = options.pop("name", None) or f"{found.module}.{found.qualname}"
    # Not lazy, so that a mistake is told where it is made. Not shared: it is no task of every other Celery application.
    made: JobTask = app.task(base=JobTask, name=name, lazy=False, shared=False, **options)(function)
    return made
