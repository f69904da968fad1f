"""One attempt's end, as its node reports it: judged, recorded, and told to whoever waits.

The node says the last word on a job in Celery if the record agrees that the job has ended as the node says. In every
other case the scheduler speaks: the job is tried again, is held, was cancelled meanwhile, or nobody on the node is left
to speak.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from broker.scheduler import avoided
from broker.scheduler.ending import JOB_STATES, job_message, say_again, say_last_word, set_aside, wait_again
from broker.scheduler.judging import Verdict, judge, reported
from broker.scheduler.live import Live
from broker.scheduler.log_lines import line
from broker.scheduler.memory import tightened
from broker.scheduler.messages import Arrival, Refused, read
from broker.scheduler.retry_policy import End as PastEnd
from broker.scheduler.retry_policy import Retry
from broker.scheduler.standing import SUSPICIOUS, broke_jobs, carried_to_its_end, died
from broker.scheduler.telling import Outcome
from broker.scheduler.turn import Turn
from cyxwiz_tasks.protocol.reports import Ended
from cyxwiz_tasks.protocol.updates import Update
from cyxwiz_tasks.states import CELERY_STATES, RETRIED_CAUSES, TERMINAL_JOB_STATES, AttemptState, Cause, JobState
from db import job_messages
from db.attempts import Ending, Settled
from db.job_messages import StoredMessage

log = logging.getLogger(__name__)

_ENDS = {
    "completed": (AttemptState.COMPLETED, JobState.COMPLETED),
    "failed": (AttemptState.FAILED, JobState.FAILED),
    "cancelled": (AttemptState.CANCELLED, JobState.CANCELLED),
    "preempted": (AttemptState.PREEMPTED, JobState.PENDING),
    "retry": (AttemptState.FAILED, JobState.PENDING),
}
#: A node that says so soon that it lost a job could not run it at all: each time is a fault, or it would go on to do so
#: with job after job. Later, its agent has died and been started anew, and all its jobs with it.
_GIVEN_BACK_SECONDS = 5.0
#: of a report that names none
_CAUSES = {"failed": Cause.ERROR, "preempted": Cause.PREEMPTED, "cancelled": Cause.CANCELLED}


@dataclass
class End:
    """A report, and what it makes of its job."""

    report: Ended
    #: None: the attempt is not under way, so far as is known here
    live: Live | None
    verdict: Verdict | None = None
    #: `self.retry()`: the job's next message, or why it cannot be one
    next_message: Arrival | None = None
    refused: str | None = None
    #: False: what its node is to blame for was counted already
    blames_node: bool = True

    @property
    def reply_to(self) -> str | None:
        return self.report.reply_to

    @property
    def decision(self) -> Retry | None:
        found = self.verdict and self.verdict.decision
        return found if isinstance(found, Retry) else None

    @property
    def is_suspicious(self) -> bool:
        """Whether its node may be to blame: the first crash or hang of a job."""
        if self.report.cause not in SUSPICIOUS or self.verdict is None:
            return False
        return not any(past.cause in SUSPICIOUS for past in self.verdict.before)


def judged(turn: Turn, reports: list[Ended]) -> list[End]:
    """These reports with what the rules say of the jobs that have no result."""
    ends = [End(report, turn.memory.of_token(report.job, report.token)) for report in reports]
    for end in ends:
        if end.report.outcome == "retry":
            _read_retry(end)
    # Of two reports of one attempt in a batch the first counts.
    first: dict[str, End] = {}
    unjudged: dict[str, PastEnd] = {}
    for end in ends:
        if end.live is not None and first.setdefault(end.report.job, end) is end and _needs_judgement(end.report):
            unjudged[end.report.job] = reported(turn, end.report, end.live)
    for job_id, verdict in judge(turn, unjudged).items():
        first[job_id].verdict = verdict
    return ends


def _needs_judgement(report: Ended) -> bool:
    return report.outcome in ("failed", "preempted") and report.cause != Cause.CANCELLED


def _read_retry(end: End) -> None:
    try:
        arrival = read((end.report.retry or "").encode("utf-8", "surrogatepass"))
        if arrival.id != end.report.job:
            raise ValueError(f"it has the id {arrival.id} of another job")
        end.next_message = arrival
    except (Refused, ValueError) as error:
        end.refused = f"its message for another try cannot be used: {error}"


def ending(end: End) -> Ending:
    """What the record gets. Raises ProtocolError for what it cannot hold."""
    report = end.report
    state, job_state = _ENDS[report.outcome]
    cause, told = report.cause or _CAUSES.get(report.outcome), end.refused
    if report.outcome == "retry":
        cause = Cause.ERROR
        job_state = JobState.FAILED if end.refused else job_state
    elif end.verdict is not None:
        job_state = JOB_STATES[type(end.verdict.decision)]
        told = job_message(end.verdict.decision, report.message or str(cause))
    return Ending(
        report.job,
        report.token,
        report.node,
        state,
        job_state,
        cause,
        report.message,
        report.exception,
        report.traceback,
        report.exit_code,
        report.result,
        (end.decision.after_seconds or None) if end.decision is not None else None,
        end.decision.learned if end.decision is not None else None,
        told,
    )


def is_final(report: Ended, answer: Settled) -> bool:
    """Whether the job has ended as its node says, by this very attempt."""
    said = _ENDS[report.outcome][1]
    return answer.newest and answer.job_state == said and said in TERMINAL_JOB_STATES


def settle(turn: Turn, end: End, ending: Ending, answer: Settled) -> None:
    """Do in memory what was done in the record, and tell of it. An end that is told again is only told again."""
    report = end.report
    told = ending.job_message or report.message
    if not answer.repeated:
        if end.live is not None:
            turn.memory.ended(report.job)
        if end.blames_node:
            _judge_node(turn, end)
        if answer.job_state == JobState.PENDING:
            _try_again(turn, end, told or f"attempt {report.attempt} gave its place back")
        elif answer.job_state == JobState.HELD:
            set_aside(turn, report.job, told or "")
    if answer.job_state in TERMINAL_JOB_STATES and answer.newest:
        _tell_end(turn, end, answer.job_state, told, answer)


def _judge_node(turn: Turn, end: End) -> None:
    report, live = end.report, end.live
    if report.outcome == "completed":
        carried_to_its_end(turn, report.node)
    elif report.cause == Cause.HARDWARE:
        broke_jobs(turn, report.node, "its hardware failed a job")
    elif report.cause == Cause.NODE_LOST and live is not None:
        if time.monotonic() - live.assigned_at < _GIVEN_BACK_SECONDS:
            broke_jobs(turn, report.node, "it could not run a job")
        else:
            died(turn, report.node, report.incarnation, "its agent died with jobs on it")


def _try_again(turn: Turn, end: End, message: str) -> None:
    report, live = end.report, end.live
    if live is None:
        return
    failed = _failure(report, message) if report.outcome == "retry" or report.cause in RETRIED_CAUSES else None
    if (arrival := end.next_message) is not None:
        following = StoredMessage(arrival.headers, arrival.body, arrival.properties)
        left_seconds = report.retry_in_seconds
        job_messages.replace_message(turn.tx, report.job, following, arrival.not_before, left_seconds)
        turn.messages[report.job] = following
        if left_seconds is None:
            turn.memory.wait_until(live.waiting, arrival.not_before)
        else:
            turn.memory.wait(live.waiting, time.monotonic() + left_seconds)
        say_again(turn, report.job, message, failed)
        turn.counts["retried"] += 1
        return
    waiting, pause_seconds = live.waiting, 0.0
    if end.decision is not None:
        waiting = waiting._replace(resources=tightened(waiting.resources, end.decision.learned))
        pause_seconds = end.decision.after_seconds
    if report.cause in avoided.CAUSES:
        turn.memory.placer.avoided.note(report.job, report.node)
    wait_again(turn, report.job, waiting, message, pause_seconds=pause_seconds, failed=failed)
    log.info(line("tried_again", job=report.job, cause=report.cause, seconds=pause_seconds))


def _tell_end(turn: Turn, end: End, state: JobState, message: str | None, answer: Settled) -> None:
    report = end.report
    turn.forget(report.job)
    turn.memory.placer.avoided.forget(report.job)
    if is_final(report, answer) and not report.untold:
        pass  # its node does
    elif state == JobState.COMPLETED:
        say_last_word(turn, report.job, Outcome(state, report.result))
    elif state == JobState.FAILED:
        say_last_word(turn, report.job, _failure(report, message or ""))
    else:
        reason = "its cancellation was asked for while it ran"
        say_last_word(turn, report.job, Outcome(state, message=reason, cause=str(Cause.CANCELLED)))
    if not answer.repeated:
        shown = CELERY_STATES[state]
        update = Update(kind="end", state=shown, attempt=report.attempt, message=message, at=time.time())
        turn.outbox.update(report.job, update)


def _failure(report: Ended, message: str) -> Outcome:
    cause = str(report.cause or Cause.ERROR)
    return Outcome(JobState.FAILED, None, report.message or message, report.exception, report.traceback, cause)
