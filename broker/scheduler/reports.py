"""What nodes report: one function per kind, each for all reports of its kind in a turn.

The kinds are handled in the order in which one node can have sent them: an attempt starts, tells and ends before its
node registers again or leaves. An end is answered after the commit, so a result that anybody sees is in the record.
"""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from typing import Any

from pydantic import ValidationError

from broker.scheduler.ending import wait_again
from broker.scheduler.log_lines import line
from broker.scheduler.registering import left, register
from broker.scheduler.standing import carried_to_its_end, failed_a_job
from broker.scheduler.turn import Turn
from cyxwiz_tasks.errors import CyxwizError
from cyxwiz_tasks.protocol import REPORT, Ended, Left, Metrics, Register, ReportReply, Started, Update
from cyxwiz_tasks.states import CELERY_STATES, AttemptState, Cause, JobState
from db import attempts, metrics
from db.attempts import Ending, Settled, Start
from db.metrics import NewMetric
from db.rows import clean

log = logging.getLogger(__name__)

_ENDS = {
    "completed": (AttemptState.COMPLETED, JobState.COMPLETED),
    "failed": (AttemptState.FAILED, JobState.FAILED),
    "cancelled": (AttemptState.CANCELLED, JobState.CANCELLED),
    "preempted": (AttemptState.PREEMPTED, JobState.PENDING),
}
#: A task that retries itself publishes its next message and then gives its place back. The message comes by another
#: list: so long it may take, lest the old one is placed once more in between.
_PREEMPTED_PAUSE_SECONDS = 0.5
#: ends that say something of the node and nothing of the job, which is tried again elsewhere
NODE_FAULTS = frozenset({Cause.NODE_LOST, Cause.HARDWARE})


def handle(turn: Turn, source: str, raws: list[bytes]) -> None:
    """Apply a batch of reports."""
    by_kind: dict[type, list[Any]] = defaultdict(list)
    for raw in raws:
        try:
            report = _read(raw)
        except ValueError as error:
            turn.outbox.reject(source, raw, _first_line(error))
            log.warning(line("report_refused", reason=_first_line(error)))
            continue
        kind = type(report)
        by_kind[Register if kind is Left else kind].append(report)
    started(turn, by_kind[Started])
    told(turn, by_kind[Metrics])
    ended(turn, by_kind[Ended])
    for report in by_kind[Register]:
        if isinstance(report, Left):
            left(turn, report)
        else:
            register(turn, report)


def started(turn: Turn, reports: list[Started]) -> None:
    starts = _valid(turn, reports, lambda r: Start(r.job, r.token, r.node, r.pid, r.device))
    moved = attempts.start(turn.tx, turn.epoch, [start for _, start in starts])
    for report, _ in starts:
        live = turn.memory.of_token(report.job, report.token)
        if live is not None:
            live.running = True
    turn.counts["started"] += len(moved)


def told(turn: Turn, reports: list[Metrics]) -> None:
    told = [(report, row) for report in reports for row in report.rows]
    rows = _valid(turn, told, lambda one: NewMetric(one[0].job, one[0].token, one[0].node, _moment(one[1]), one[1]))
    turn.counts["metrics"] += metrics.append(turn.tx, [row for _, row in rows])


def ended(turn: Turn, reports: list[Ended]) -> None:
    endings = _valid(turn, reports, _ending)
    settled = attempts.end(turn.tx, turn.epoch, [ending for _, ending in endings])
    for (report, ending), answer in zip(endings, settled, strict=True):
        if answer.committed:
            _settle(turn, report, ending, answer)
        else:
            log.info(line("report_fenced", job=report.job, token=report.token, node=report.node))
        reply = ReportReply(committed=answer.committed, message=None if answer.committed else _FENCED)
        turn.outbox.reply(report.reply_to, reply)
    turn.counts["ended"] += sum(answer.committed and not answer.repeated for answer in settled)


_FENCED = "this attempt is not the job's current one any more: its place was given to another, or the job was cancelled"


def _ending(report: Ended) -> Ending:
    state, job_state = _ENDS[report.outcome]
    if state == AttemptState.FAILED and report.cause in NODE_FAULTS:
        job_state = JobState.PENDING
    return Ending(
        report.job,
        report.token,
        report.node,
        state,
        job_state,
        report.cause,
        report.message,
        report.exception,
        report.traceback,
        report.exit_code,
        report.result,
    )


def _settle(turn: Turn, report: Ended, ending: Ending, answer: Settled) -> None:
    live = turn.memory.of_token(report.job, report.token)
    if live is not None:
        turn.memory.ended(report.job)
        if ending.state == AttemptState.COMPLETED:
            carried_to_its_end(turn, report.node)
        elif ending.cause in NODE_FAULTS:
            failed_a_job(turn, report.node)
    if answer.job_state == JobState.PENDING and live is not None:
        message = report.message or f"attempt {report.attempt} gave its place back"
        wait_again(turn, report.job, live.waiting, message, pause_seconds=_PREEMPTED_PAUSE_SECONDS)
    elif answer.job_state is not None and answer.job_state != JobState.PENDING:
        turn.outbox.update(
            report.job,
            Update(
                kind="end",
                state=CELERY_STATES[answer.job_state],
                attempt=report.attempt,
                message=report.message,
                at=time.time(),
            ),
        )


def _read(raw: bytes) -> Any:
    try:
        return REPORT.validate_json(raw)
    except ValidationError:
        # pydantic refuses half a surrogate pair, which a job may well print into its error.
        return REPORT.validate_python(clean(json.loads(raw)))


def _valid(turn: Turn, reports: list[Any], make: Any) -> list[tuple[Any, Any]]:
    """Reports with what `make` makes of them, without those that no table can hold."""
    made = []
    for report in reports:
        try:
            made.append((report, make(report)))
        except CyxwizError as error:
            log.warning(line("report_refused", reason=str(error)))
            reply = ReportReply(committed=False, message=str(error))
            turn.outbox.reply(getattr(report, "reply_to", None), reply)
    return made


def _moment(row: dict[str, Any]) -> float:
    at = row.get("at")
    return float(at) if isinstance(at, int | float) else time.time()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
