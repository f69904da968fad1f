"""Run one attempt of a job: a pipe of named steps over one `Attempt`, then one function for each way it can end.

Celery's own tracer is around it: what is returned or raised here, Celery stores, and then goes on with links, chains
and chords. So this returns only once the scheduler has the outcome in the record, and raises `Ignore` where the record
says that this attempt does not count.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import redis
from celery import Task
from celery.canvas import Signature
from celery.exceptions import Ignore
from pydantic import ValidationError

from cyxwiz_tasks import failpoints
from cyxwiz_tasks.errors import ProtocolError
from cyxwiz_tasks.protocol import ASSIGNMENT_HEADER, HEADER, Assignment, Ended, JobHeader, Stop, log_key
from cyxwiz_tasks.runtime.pipe import decode_value, encode_value
from workers.attempt import Attempt
from workers.attempt_reports import AttemptReports
from workers.attempts import StopRequest
from workers.confirm import confirm
from workers.joblog import JobLog
from workers.node import Node
from workers.outcomes import Outcome, cancelled, outcome_of, preempted
from workers.states import state_commands
from workers.storable import storable_json, storable_text
from workers.supervise import supervise
from workers.warm_process import WarmProcess

log = logging.getLogger(__name__)

#: Of the request, what `self.request` and `self.retry()` look at in the job's process.
_REQUEST_FIELDS = (
    *("id", "task", "root_id", "parent_id", "group", "group_index", "retries", "headers", "correlation_id", "reply_to"),
    *("delivery_info", "hostname", "ignore_result", "origin", "shadow", "timelimit"),
    *("chord", "chain", "callbacks", "errbacks", "replaced_task_nesting"),
)
#: How long a node that stops still waits until an attempt's progress is in Redis.
_FLUSH_SECONDS = 3.0


def run(task: Task, process: WarmProcess, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The steps, in order. Returns the job's result, or raises what Celery shall store.

    Raises ProtocolError for a message that did not come through the scheduler.
    """
    assignment, header = _read_headers(task)
    _refuse_if_not_ours(node, assignment)
    failpoints.hit("agent.after_accept")
    attempt = _begin(task, process, node, assignment, header, args, kwargs)
    try:
        if _stopped_before_start(attempt):
            outcome = cancelled(attempt) if _asked(attempt).outcome == "cancelled" else preempted(attempt)
        else:
            failpoints.hit("agent.before_handover")
            _hand_over(attempt)
            supervise(attempt)
            outcome = outcome_of(attempt)
        attempt.process.end_tree()
        _publish_retry(task, outcome)
        failpoints.hit("agent.before_report")
        committed = _report(attempt, outcome)
    finally:
        node.attempts.leave(assignment.token)
        attempt.stop_request.close()
    failpoints.hit("agent.after_confirm")
    _tell(attempt, outcome, committed)
    if not committed:
        raise Ignore
    return _conclude(task, attempt, outcome)


def _read_headers(task: Task) -> tuple[Assignment, JobHeader]:
    request = task.request
    try:
        assignment = Assignment.model_validate(request.get(ASSIGNMENT_HEADER))
        return assignment, JobHeader.model_validate(request.get(HEADER) or {})
    except ValidationError as error:
        raise ProtocolError(
            f"message {request.id} did not come through the scheduler: its header {ASSIGNMENT_HEADER} or {HEADER} "
            f"cannot be read ({error.errors()[0]['msg']}). Send jobs to the inbox, never to a node's own queue"
        ) from None


def _refuse_if_not_ours(node: Node, assignment: Assignment) -> None:
    """A message from before this node's start, or for another node: its attempt is lost already."""
    if (assignment.node, assignment.incarnation) != (node.id, node.incarnation) or node.stopping:
        log.info("job %s: its message is for an earlier start of a node, or this one stops", assignment.job)
        raise Ignore


def _begin(
    task: Task,
    process: WarmProcess,
    node: Node,
    assignment: Assignment,
    header: JobHeader,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Attempt:
    folder = node.folder.attempt_folder(assignment.token)
    request = task.request
    reports = AttemptReports(
        assignment,
        node.name,
        ttl_seconds=node.settings.result_ttl_seconds,
        wake=node.reporter.wake,
        state_commands=lambda state, meta: state_commands(task.backend, request, state, meta),
        show=lambda text: node.show_progress(request.id, text),
    )
    attempt = Attempt(
        node=node,
        process=process,
        request=request,
        task_name=task.name,
        args=args,
        kwargs=kwargs,
        header=header,
        assignment=assignment,
        folder=folder,
        reports=reports,
        log=JobLog(folder / "log", node.settings.log_limit_bytes, reports.output),
        stop_request=StopRequest(),
    )
    node.attempts.enter(assignment.job, assignment.token, attempt.stop_request)
    node.reporter.watch(reports)
    return attempt


def _stopped_before_start(attempt: Attempt) -> bool:
    return attempt.stop_request.asked is not None


def _asked(attempt: Attempt) -> Stop:
    assert attempt.stop_request.asked is not None
    return attempt.stop_request.asked


def _hand_over(attempt: Attempt) -> None:
    """Give the job to its process, and only then tell of it: the job does not wait for that."""
    request = {name: attempt.request.get(name) for name in _REQUEST_FIELDS}
    # Then self.retry() raises without publishing: the process has no broker, the agent does it.
    request |= {"is_eager": True, "called_directly": False}
    request["headers"] = {**(request["headers"] or {}), HEADER: attempt.request.get(HEADER)}
    frame = attempt.spec() | {"request": request, "arguments": encode_value([list(attempt.args), attempt.kwargs])}
    try:
        attempt.process.pipe.send(frame)
    except OSError:
        return  # it has just died: supervise sees why
    attempt.reports.started(attempt.process.pid, attempt.device)


def _publish_retry(task: Task, outcome: Outcome) -> None:
    """`self.retry()`: the next message of the same job, which the scheduler keeps until this attempt has ended."""
    if outcome.kind == "retry" and outcome.encoded is not None:
        if not task.request.ignore_result:
            task.backend.mark_as_retry(task.request.id, outcome.error, request=task.request)
        Signature.from_dict(decode_value(outcome.encoded), app=task.app).apply_async()


def _report(attempt: Attempt, outcome: Outcome) -> bool:
    """Everything that was said goes first, the end last. Returns whether it is the last word on the job."""
    attempt.log.close()
    _flush(attempt)
    if attempt.undead:
        log.error("job %s: processes %s hang in the kernel", attempt.assignment.job, attempt.undead)
    returned = outcome.kind == "completed" and outcome.encoded is not None
    ended = Ended(
        **attempt.reports.identity,
        outcome="preempted" if outcome.kind == "retry" else outcome.kind,
        cause=outcome.cause,
        message=_stored(outcome.message),
        exception=_stored(outcome.exception),
        traceback=_stored(outcome.traceback),
        exit_code=attempt.exit_code,
        result=storable_json(outcome.encoded or "null") if returned else None,
        seconds=attempt.seconds,
    )
    committed = confirm(attempt.node, ended)
    if committed and outcome.kind not in ("preempted", "retry"):
        _end_log(attempt)
    return committed


def _flush(attempt: Attempt) -> None:
    node, gives_up_at = attempt.node, time.monotonic() + _FLUSH_SECONDS
    if not node.reporter.finish(attempt.reports, lambda: not node.stopping or time.monotonic() < gives_up_at):
        log.warning("job %s: Redis did not take all of its progress before this node stopped", attempt.assignment.job)


def _end_log(attempt: Attempt) -> None:
    """Only now: an attempt that does not count must not end the log of the one that does."""
    try:
        key = log_key(attempt.assignment.job)
        pipeline = attempt.node.redis.pipeline(transaction=False)
        pipeline.xadd(key, {"end": attempt.assignment.attempt})
        pipeline.expire(key, attempt.node.settings.result_ttl_seconds)
        pipeline.execute()
    except redis.RedisError as error:
        log.warning("job %s: the end of its log could not be marked: %s", attempt.assignment.job, error)


def _stored(text: str | None) -> str | None:
    return None if text is None else storable_text(text)


def _tell(attempt: Attempt, outcome: Outcome, committed: bool) -> None:
    why = "" if outcome.message is None else ": " + outcome.message.partition("\n")[0]
    counts = "" if committed else " (not the last word on the job: it is tried again, or another attempt counts)"
    log.info(
        "job %s (%s) attempt %d %s after %.2f s%s%s",
        attempt.assignment.job,
        attempt.task_name,
        attempt.assignment.attempt,
        outcome.kind,
        attempt.seconds,
        why,
        counts,
    )


def _conclude(task: Task, attempt: Attempt, outcome: Outcome) -> Any:
    """What Celery gets of an attempt that counts."""
    match outcome.kind:
        case "completed":
            return outcome.value
        case "failed":
            assert outcome.error is not None
            raise outcome.error
        case "cancelled":
            task.backend.mark_as_revoked(
                task.request.id, outcome.message, request=task.request, store_result=not task.request.ignore_result
            )
            task.send_event("task-revoked", terminated=True, signum=None, expired=False)
    # The job is the scheduler's again.
    raise Ignore
