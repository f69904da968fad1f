"""Client: submit jobs and ask about them. It speaks to Redis alone; what the record knows, the scheduler answers."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeAlias

import redis
from celery import Celery
from celery.canvas import Signature

from cyxwiz_tasks.array_handle import ArrayHandle
from cyxwiz_tasks.array_parameters import Parameters, array_of
from cyxwiz_tasks.broker_connection import connect, reached
from cyxwiz_tasks.broker_url import usable
from cyxwiz_tasks.celery_app import Application, make_app
from cyxwiz_tasks.early_stopping import SuccessiveHalving
from cyxwiz_tasks.errors import CyxwizError, InvalidJob, InvalidSettings, SchedulerUnavailable
from cyxwiz_tasks.explanation import Explanation
from cyxwiz_tasks.handle import JobHandle
from cyxwiz_tasks.ids import new_id, parse_id
from cyxwiz_tasks.job_header import check_text, os_user, parse_priority, parse_seconds
from cyxwiz_tasks.job_task import JobTask
from cyxwiz_tasks.protocol.commands import (
    AddSchedule,
    Cancel,
    CancelArray,
    Drain,
    Quotas,
    Release,
    RemoveSchedule,
    SetLimits,
    SetQuota,
    Undrain,
    Usage,
    Why,
)
from cyxwiz_tasks.protocol.names import INBOX, reply_key
from cyxwiz_tasks.protocol.updates import Ack, Acks
from cyxwiz_tasks.requests import Requests, named_error
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.settings import settings
from cyxwiz_tasks.states import JobState, Priority, celery_state
from cyxwiz_tasks.submission import Member, Preparation, Submission
from cyxwiz_tasks.training_job import TrainingJob

Job: TypeAlias = TrainingJob | Signature

#: Messages in one pipeline: large enough that round trips vanish, small enough that Redis serves others in between.
CHUNK = 500
#: Nothing heard for so long, and nothing left in the inbox: the messages went with a Redis that lost its memory.
RESEND_SECONDS = 5.0


class Client:
    """Submits jobs to the scheduler of a broker and asks it about them. Safe for threads; close it, or use `with`.

    Without a URL: CYXWIZ_BROKER_URL, or the stack that `cyxwiz up` started here. Every method raises ServerUnavailable
    if Redis does not answer and SchedulerUnavailable if no scheduler does; the constructor raises NoStack.
    """

    def __init__(self, broker_url: str | None = None, *, app: Celery | None = None) -> None:
        self.broker_url = usable(broker_url or settings().broker())
        self.app = app or make_app(self.broker_url)
        self.connection: redis.Redis = connect(self.broker_url)
        self.requests = Requests(self.connection, self.broker_url)

    def submit(
        self,
        job: Job,
        *,
        resources: Resources | dict[str, Any] | None = None,
        priority: str | int | None = None,
        id: str | None = None,
        idempotency_key: str | None = None,
        name: str | None = None,
        owner: str | None = None,
        project: str | None = None,
        time_limit: str | float | timedelta | None = None,
        start_by: str | float | timedelta | datetime | None = None,
        deadline: str | float | timedelta | datetime | None = None,
        max_retries: int | None = None,
        exclusive: bool | None = None,
        after: Any = None,
        wait: bool = True,
        timeout: float | None = None,
    ) -> JobHandle:
        """Send one job; return once the scheduler has recorded it, so that it cannot be lost.

        `start_by` cancels a job that has not started by then, `deadline` ends it wherever it is: durations from its
        acceptance on, or a time. `max_retries` are further tries after its own failures; a lost node never counts.
        An `exclusive` job writes to the outside world: its node ends it before another could run it.
        `after` is a job, or several, that must have ended before this one may be placed: handles or ids, alone for a
        result, or in a pair with "ok", "fail" (failed or cancelled) or "any". If one ends in another way, so does this.
        The same `id`, or the same `idempotency_key` of one owner, is the same job: sending it again changes nothing.
        `wait=False` returns at once. `timeout` is in seconds, by default CYXWIZ_SUBMIT_TIMEOUT_SECONDS.
        Raises InvalidJob that names the field, JobConflict, JobRefused.
        """
        options = {
            "resources": resources,
            "priority": priority,
            "id": id,
            "idempotency_key": idempotency_key,
            "name": name,
            "owner": owner,
            "project": project,
            "time_limit": time_limit,
            "start_by": start_by,
            "deadline": deadline,
            "max_retries": max_retries,
            "exclusive": exclusive,
            "after": after,
        }
        return self.submit_many([(job, options)], wait=wait, timeout=timeout)[0]

    def submit_many(
        self, jobs: Iterable[Job | tuple[Job, Mapping[str, Any]]], *, wait: bool = True, timeout: float | None = None
    ) -> list[JobHandle]:
        """Send many jobs, each alone or with its options of `submit`; return once all are recorded, in their order.

        Nothing is sent if one of them is not valid. `timeout` is the longest silence, in seconds. If the scheduler
        refuses some, the first refusal is raised and its `accepted` lists the handles of the others.
        """
        reply_to = reply_key(new_id()) if wait else None
        prepare = Preparation(self.app, reply_to).prepare
        submissions = [prepare(*job) if isinstance(job, tuple) else prepare(job, {}) for job in jobs]
        return self._send(submissions, reply_to, timeout)

    def map(
        self,
        job: Job | JobTask,
        parameters: Parameters,
        *,
        at_most: int | None = None,
        early_stopping: SuccessiveHalving | None = None,
        id: str | None = None,
        name: str | None = None,
        wait: bool = True,
        timeout: float | None = None,
        **options: Any,
    ) -> ArrayHandle:
        """Send one job for each of these parameters, as an array; return once all are recorded.

        `parameters` is a grid, {"learning_rate": [0.1, 0.01], "seed": range(5)}, or a list of dicts: of fields of a
        TrainingJob, or of arguments of a job's function. The scheduler places `at_most` of them at a time, and
        ends the worst of them as `early_stopping` says. The same `id` is the same array: sending it again changes
        nothing. Other options are those of `submit`.
        Raises InvalidJob that names the field or the parameter.
        """
        array, jobs = array_of(job, parameters, at_most, early_stopping, id, name, options)
        reply_to = reply_key(new_id()) if wait else None
        prepare = Preparation(self.app, reply_to).prepare
        submissions = [prepare(one, options | chosen, Member(array, index)) for index, (one, chosen) in enumerate(jobs)]
        self._send(submissions, reply_to, timeout)
        return ArrayHandle(self, array.id, array.size, submissions[0].task)

    def _send(self, submissions: list[Submission], reply_to: str | None, timeout: float | None) -> list[JobHandle]:
        with reached(self.broker_url):
            self._push(submissions)
            self.requests.answered = True
            acks = self._acks(submissions, reply_to, timeout) if reply_to is not None else {}
        refused = {id: ack for id, ack in acks.items() if ack.job is None}
        handles = [
            self._handle(submission, acks.get(submission.id))
            for submission in submissions
            if submission.id not in refused
        ]
        if refused:
            first = next(iter(refused.values()))
            error = named_error(first.error_type, first.error)
            error.accepted = handles  # type: ignore[attr-defined]
            raise error
        return handles

    def get(self, id: str) -> JobHandle:
        """The handle of a job by its id; whether there is such a job shows when it is asked something.

        Raises InvalidJob if the id is no UUID.
        """
        return JobHandle(self, parse_id(id))

    def schedule(
        self,
        name: str,
        job: Job,
        *,
        cron: str,
        timezone: str = "UTC",
        catch_up: bool = True,
        **options: Any,
    ) -> dict[str, Any]:
        """Send a job again and again, whenever `cron` ("0 3 * * *": at 3 each night) says so in a timezone.

        The scheduler does it, whether this program runs or not, until `unschedule`. Moments at which no scheduler ran
        are made up for by one job, or without `catch_up` by none. Other options are those of `submit`.
        Returns the schedule's record. Raises InvalidJob that names the field, or where there is one of this name.
        """
        for option in ("id", "idempotency_key", "after"):
            if options.get(option) is not None:
                raise InvalidJob(option, "is of single jobs, not of a schedule", "Leave it out")
        celerys = job["options"] if isinstance(job, Signature) else {}
        for option in ("countdown", "eta", "expires"):
            if celerys.get(option) is not None:
                raise InvalidJob(option, "is a moment, and each job of a schedule has its own", 'Write start_by="4h"')
        for option, value in options.items():
            if isinstance(value, datetime):
                raise InvalidJob(option, "is a moment, and each job of a schedule has its own", 'Write "4h"')
        id = new_id()
        submission = Preparation(self.app, None).prepare(job, {"name": check_text("name", name)} | options | {"id": id})
        message = submission.message.decode()
        command = AddSchedule(id=id, name=name, cron=cron, timezone=timezone, catch_up=catch_up, message=message)
        return dict(self.requests.command(command))

    def unschedule(self, name: str) -> None:
        """Send no more jobs of a schedule; those that were sent go on. Raises NotFound."""
        self.requests.command(RemoveSchedule(name=name))

    def schedules(self) -> list[dict[str, Any]]:
        """The schedules, by name: cron, timezone, `next_at`, `last_at`, `last_job_id`, and `refused`: whether its
        owner's limits refused the job of its last moment, which is then tried again at `next_at`.
        """
        return list(self.requests.query("schedules"))

    def array(self, id: str) -> ArrayHandle:
        """The handle of an array by its id. Raises NotFound, InvalidJob if the id is no UUID."""
        record = self.requests.query("array", id=parse_id(id))
        return ArrayHandle(self, record["id"], record["size"])

    def cancel_array(self, id: str, reason: str = "") -> int:
        """End what has not ended of an array; of how many jobs that was asked. Raises NotFound."""
        return int(self.requests.command(CancelArray(array=parse_id(id), reason=reason))["jobs"])

    def cancel(self, id: str, reason: str = "") -> Any:
        """End a job wherever it is; on one that has ended it changes nothing. Raises NotFound."""
        return self.requests.command(Cancel(job=parse_id(id), reason=reason))

    def release(self, id: str) -> Any:
        """Put a held job back into the queue, with fresh tries. Raises NotFound, InvalidJob if it is not held."""
        return self.requests.command(Release(job=parse_id(id)))

    def job(self, id: str, *, timeout: float | None = None) -> dict[str, Any]:
        """The record of a job, with its attempts. Raises NotFound."""
        return _with_celery_state(self.requests.query("job", timeout, id=parse_id(id)))

    def jobs(self, **filters: Any) -> list[dict[str, Any]]:
        """Records of jobs, newest first.

        Filters: states (a list), owner, name, node, limit, before (an id).

        Those of an `array` (its id) come in the order of their indexes, from `after_index` on.
        """
        return [_with_celery_state(row) for row in self.requests.query("jobs", **filters)]

    def nodes(self, **filters: Any) -> list[dict[str, Any]]:
        """The nodes and what they can do."""
        return list(self.requests.query("nodes", **filters))

    def drain(self, node: str, deadline: str | float | timedelta | None = 0.0, reason: str = "") -> dict[str, Any]:
        """Give a node, by name or id, no new work. Its jobs go on elsewhere: from now on, after `deadline`, or (None)
        they are left to end there. Returns the node's record; it stays drained over restarts, until `undrain`.

        Raises NotFound, InvalidSettings where several nodes bear the name, InvalidJob for a deadline that is none.
        """
        seconds = deadline if deadline is None or deadline == 0 else parse_seconds(deadline, "deadline")
        return dict(self.requests.command(Drain(node=node, deadline_seconds=seconds, reason=reason)))

    def undrain(self, node: str) -> dict[str, Any]:
        """Let a node take work again that was drained or is in quarantine. Raises NotFound, InvalidSettings."""
        return dict(self.requests.command(Undrain(node=node)))

    def usage(self) -> list[dict[str, Any]]:
        """What each project and each owner has of the cluster, those who had most first."""
        return list(self.requests.command(Usage()))

    def set_limits(self, owner: str, **changes: float | None) -> dict[str, Any]:
        """Change what an owner may have: running, waiting, per_minute (None: without a limit), weight. Returns all.

        Raises InvalidSettings.
        """
        _check_numbers(changes)
        return dict(self.requests.command(SetLimits(owner=check_text("owner", owner), changes=changes)))

    def set_quota(self, project: str, **changes: float | None) -> dict[str, Any]:
        """Change what a project owns of the cluster (gpus, cpus), lends of that and borrows beyond it (lend_gpus, ...,
        borrow_cpus; None: without a limit), and its weight. Returns its quota. Raises InvalidSettings.
        """
        _check_numbers(changes)
        return dict(self.requests.command(SetQuota(project=project, changes=changes)))

    def remove_quota(self, project: str) -> dict[str, Any]:
        """Let a project own nothing. Returns its quota."""
        return dict(self.requests.command(SetQuota(project=project, changes=None)))

    def quotas(self) -> list[dict[str, Any]]:
        """What each project owns, holds and has borrowed."""
        return list(self.requests.command(Quotas()))

    def events(self, id: str) -> list[dict[str, Any]]:
        """Every change of a job's state, oldest first. Raises NotFound."""
        return list(self.requests.query("events", id=parse_id(id)))

    def metrics(self, id: str) -> list[dict[str, Any]]:
        """What a job reported, oldest first, each with `attempt` and `at`, a Unix time. Raises NotFound."""
        rows = self.requests.query("metrics", id=parse_id(id))
        return [{"attempt": row["attempt"], "at": row["at"], **row["values"]} for row in rows]

    def status(self) -> dict[str, Any]:
        """Counts of jobs and nodes, and who leads."""
        return dict(self.requests.query("status"))

    def why(self, id: str) -> Explanation:
        """Where a job stands and, while it waits, what would make it fit. Raises NotFound."""
        return Explanation(self.requests.command(Why(job=parse_id(id))))

    def plan(
        self,
        resources: Resources | dict[str, Any],
        *,
        owner: str | None = None,
        project: str | None = None,
        priority: str | int | None = None,
    ) -> Explanation:
        """Where a job with these resources, submitted like this, would run now; nothing is sent. Raises InvalidJob."""
        question = Why(
            resources=Resources.parse(resources),
            owner=owner or os_user(),
            project=project or "",
            priority=parse_priority(priority) if priority is not None else Priority.NORMAL,
        )
        return Explanation(self.requests.command(question))

    def close(self) -> None:
        self.connection.close()
        self.app.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _handle(self, submission: Submission, ack: Ack | None) -> JobHandle:
        # By its idempotency key a job may be known under another id.
        known = submission.id if ack is None or ack.job is None else ack.job
        return JobHandle(self, known, submission.task, ignore_result=submission.ignore_result)

    def _push(self, submissions: Iterable[Submission]) -> None:
        messages = (submission.message for submission in submissions)
        for chunk in _chunks(messages, CHUNK):
            self.connection.lpush(INBOX, *chunk)

    def _acks(self, submissions: list[Submission], reply_to: str, timeout: float | None) -> dict[str, Ack]:
        """Wait until all are answered; the answers that say more than that a job is recorded under its id."""
        seconds = settings().submit_timeout_seconds if timeout is None else timeout
        waiting = {submission.id: submission for submission in submissions}
        found: dict[str, Ack] = {}
        deadline = time.monotonic() + seconds
        while waiting:
            acks = self.requests.wait(reply_to, Acks, min(deadline, time.monotonic() + RESEND_SECONDS))
            if acks is not None:
                deadline = time.monotonic() + seconds
                for id in acks.recorded:
                    waiting.pop(id, None)
                for ack in acks.acks:
                    waiting.pop(ack.id, None)
                    found[ack.id] = ack
            elif time.monotonic() >= deadline:
                raise _nothing_heard(waiting, seconds)
            elif not self.connection.exists(INBOX):
                self._push(waiting.values())
        return found


def _with_celery_state(row: dict[str, Any]) -> dict[str, Any]:
    """A record with, beside our name of its state, the one that `AsyncResult` has for it."""
    return row | {"celery_state": celery_state(JobState(row["state"]), row.get("cause"))}


def _check_numbers(changes: Mapping[str, float | None]) -> None:
    """Raises InvalidSettings for NaN and infinities, in whose place JSON would carry what means "without a limit"."""
    for name, value in changes.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidSettings(f"{name}: {value} is no number that can be kept: write another one, or none")


def _nothing_heard(waiting: Mapping[str, Submission], seconds: float) -> CyxwizError:
    what = f"job {next(iter(waiting))}" if len(waiting) == 1 else f"{len(waiting)} jobs"
    return SchedulerUnavailable(
        f"no scheduler recorded {what} within {seconds:g} s: see that `cyxwiz up` or `cyxwiz scheduler` runs. "
        "The message waits in Redis and may still be accepted; sending it again with the same id is safe",
        ids=tuple(waiting),
    )


def _chunks(items: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


@lru_cache(maxsize=16)
def _client_at(broker_url: str) -> Client:
    return Client(broker_url)


def client_of(app: Celery) -> Client:
    """The client for an application's broker, one for each broker in this process. Raises NoStack."""
    url = app.server if isinstance(app, Application) else app.conf.broker_write_url
    if not isinstance(url, str) or ";" in url:
        return _client_at(app.connection_for_write().as_uri(include_password=True))  # the first of several
    # As it was given: kombu's form of it has lost the query, in which the options of TLS are.
    return _client_at(url)
