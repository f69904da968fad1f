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
from celery.exceptions import Ignore
from kombu.exceptions import OperationalError

from cyxwiz_tasks import failpoints
from cyxwiz_tasks.protocol.names import log_key
from cyxwiz_tasks.protocol.reports import Ended, Process
from cyxwiz_tasks.states import Cause
from workers.attempt import Attempt
from workers.attempt_artifacts import AttemptArtifacts
from workers.attempt_reports import AttemptReports
from workers.confirm import confirm
from workers.handover import Handover
from workers.joblog import JobLog
from workers.journal import Begun, boot_id
from workers.node import Node
from workers.outcomes import Outcome, cancelled, no_checkpoint, not_met, outcome_of, preempted
from workers.states import state_commands
from workers.storable import storable_json, storable_text
from workers.supervise import supervise
from workers.warm_process import WarmProcess

log = logging.getLogger(__name__)

#: How long a node that stops still waits until an attempt's progress is in Redis.
_FLUSH_SECONDS = 3.0


def run(task: Task, process: WarmProcess, node: Node, handover: Handover) -> Any:
    """The steps, in order. Returns the job's result, or raises what Celery shall store.

    Raises ProtocolError for a message that did not come through the scheduler.
    """
    if handover.refusal is not None:
        raise handover.refusal
    try:
        attempt = _begin(task, process, node, handover)
        outcome = _run(attempt, handover)
        attempt.process.end_tree()
        failpoints.hit("agent.before_report")
        counts = _report(attempt, handover, outcome)
    except Exception as error:
        _give_back(process, node, handover, error)
        raise Ignore from None
    finally:
        handover.close()
    failpoints.hit("agent.after_confirm")
    _tell(attempt, outcome, counts)
    if not counts:
        raise Ignore
    if outcome.kind in ("completed", "cancelled"):
        attempt.artifacts.forget_checkpoints()
    return _conclude(task, attempt, handover, outcome)


def _begin(task: Task, process: WarmProcess, node: Node, handover: Handover) -> Attempt:
    """What an attempt needs beside its process, which may be at work already."""
    assignment, request = handover.assignment, task.request
    folder = node.folder.own_path(assignment.token)
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
        header=handover.header,
        assignment=assignment,
        reports=reports,
        artifacts=AttemptArtifacts(
            node.artifact_store,
            assignment,
            artifacts=node.artifacts_path(assignment),
            checkpoints=node.checkpoints_path(assignment.job),
            staging=folder / "unsent",
            stopping=lambda: node.stopping,
        ),
        log=JobLog(folder / "log", node.settings.log_limit_bytes, reports.output),
        stop_request=handover.stop_request,
        arrived_at=handover.arrived_at,
        started_at=handover.given_at,
    )
    node.reporter.watch(reports)
    if handover.given:
        runs = Process(pid=process.pid, device=attempt.device)
        node.journal.begun(Begun(**reports.identity, **runs.model_dump(), started=process.started, boot=boot_id()))
        node.attempts.started(assignment.token, runs)
        reports.started(process.pid, attempt.device)
    return attempt


def _run(attempt: Attempt, handover: Handover) -> Outcome:
    if handover.given:
        supervise(attempt)
        return outcome_of(attempt)
    asked = handover.stop_request.asked
    if asked is not None and asked.outcome == "cancelled":
        return cancelled(attempt)
    # A node that stops ends whoever waits, and asks all to leave only then: that nobody has asked is no wish to cancel.
    if asked is not None or attempt.node.stopping:
        return preempted(attempt)
    if handover.not_fetched is not None:
        return no_checkpoint(attempt, handover.not_fetched)
    assert handover.not_met is not None
    return not_met(attempt, handover.not_met)


def _give_back(process: WarmProcess, node: Node, handover: Handover, error: Exception) -> None:
    """Something of ours failed: no fault of the job's, which another node may run."""
    log.exception("job %s: this node failed to run it to its end", handover.assignment.job)
    process.end_tree()
    node.courier.deliver(
        Ended(
            **handover.assignment.identity,
            outcome="failed",
            cause=Cause.NODE_LOST,
            message=f"node {node.name} failed to run it to its end: {type(error).__name__}: {error}",
            process=node.attempts.processes().get(handover.assignment.token),
        )
    )


def _store_artifacts(attempt: Attempt, outcome: Outcome) -> None:
    """Before the end is reported: whoever hears of it finds them."""
    if (missing := attempt.artifacts.finish(outcome.kind)) is None:
        attempt.node.journal.sent(attempt.assignment.token)
        return
    log.warning("job %s: %s", attempt.assignment.job, missing)
    attempt.log.write(f"{missing}\n".encode())


def _report(attempt: Attempt, handover: Handover, outcome: Outcome) -> bool:
    """Everything that was said goes first, the end last. Returns whether it is the job's last word."""
    if attempt.undead:
        log.error("job %s: processes %s hang in the kernel", attempt.assignment.job, attempt.undead)
    node, ended = attempt.node, _ended(attempt, outcome)
    # Before anything that may wait for a store or for Redis: this agent may end first.
    if (artifacts := attempt.artifacts.owed(outcome.kind)) is not None:
        node.journal.owes(ended.token, artifacts)
    node.journal.ended(ended)
    _store_artifacts(attempt, outcome)
    attempt.log.close()
    _flush(attempt)
    reply = confirm(node, ended)
    if reply is None:
        return False  # the journal has it, for the node's next start
    last_word = reply.committed and reply.final
    if last_word:
        handover.owed = ended
        _end_log(attempt)
    else:
        node.journal.told(ended.token)
    return last_word


def _ended(attempt: Attempt, outcome: Outcome) -> Ended:
    returned = outcome.kind == "completed" and outcome.encoded is not None
    following = outcome.next_try
    asked = attempt.stop_request.asked
    return Ended(
        **attempt.reports.identity,
        outcome=outcome.kind,
        cause=outcome.cause,
        message=_stored(outcome.message),
        exception=_stored(outcome.exception),
        exception_bases=outcome.exception_bases,
        traceback=_stored(outcome.traceback),
        exit_code=attempt.exit_code,
        process=attempt.node.attempts.processes().get(attempt.assignment.token),
        result=storable_json(outcome.encoded or "null") if returned else None,
        seconds=attempt.seconds,
        retry=following.text if following is not None else None,
        retry_in_seconds=following.in_seconds if following is not None else None,
        memory=outcome.memory,
        had_memory_bytes=attempt.had_memory_bytes(outcome.memory) if outcome.memory is not None else None,
        by_node=outcome.kind == "preempted" and (asked is None or asked.by_node),
    )


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


def _tell(attempt: Attempt, outcome: Outcome, counts: bool) -> None:
    why = "" if outcome.message is None else ": " + outcome.message.partition("\n")[0]
    log.info(
        "job %s (%s) attempt %d %s after %.2f s%s%s",
        attempt.assignment.job,
        attempt.task_name,
        attempt.assignment.attempt,
        outcome.kind,
        attempt.seconds,
        why,
        "" if counts else " (not the job's last word)",
    )


def _conclude(task: Task, attempt: Attempt, handover: Handover, outcome: Outcome) -> Any:
    """What Celery gets of an attempt whose end is the job's."""
    match outcome.kind:
        case "completed":
            return outcome.value
        case "failed":
            assert outcome.error is not None
            raise outcome.error
    _revoke(task, handover, outcome)
    raise Ignore


def _revoke(task: Task, handover: Handover, outcome: Outcome) -> None:
    request = task.request
    try:
        task.backend.mark_as_revoked(
            request.id, outcome.message, request=request, store_result=not request.ignore_result
        )
        task.send_event("task-revoked", terminated=True, signum=None, expired=False)
    except (redis.RedisError, OperationalError) as error:
        log.warning("job %s: REVOKED could not be told: %s", request.id, error)
    else:
        handover.told()
