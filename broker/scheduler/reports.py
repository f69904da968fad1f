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

from broker.scheduler import attempt_ends, gang_members
from broker.scheduler.log_lines import line
from broker.scheduler.registering import left, register, stopping_soon
from broker.scheduler.standing import suspect
from broker.scheduler.turn import Turn
from cyxwiz_tasks.errors import CyxwizError
from cyxwiz_tasks.protocol.reports import REPORT, Ended, Left, Metrics, Register, ReportReply, Started, Stopping
from db import attempts, gangs, metrics
from db.attempts import Start
from db.metrics import LATEST_SECOND, NewMetric
from db.rows import clean

log = logging.getLogger(__name__)


def handle(turn: Turn, source: str, raws: list[bytes]) -> None:
    """Apply a batch of reports."""
    by_kind: dict[type, list[Any]] = defaultdict(list)
    for raw in raws:
        try:
            report = _read(raw)
        except (ValueError, RecursionError) as error:
            turn.outbox.reject(source, raw, _first_line(error))
            log.warning(line("report_refused", reason=_first_line(error)))
            continue
        kind = type(report)
        by_kind[Register if kind in (Stopping, Left) else kind].append(report)
    started(turn, by_kind[Started])
    told(turn, by_kind[Metrics])
    started(turn, _unheard(turn, by_kind[Ended]))
    ended(turn, by_kind[Ended])
    for report in by_kind[Register]:
        if isinstance(report, Left):
            left(turn, report)
        elif isinstance(report, Stopping):
            stopping_soon(turn, report)
        else:
            register(turn, report)


def started(turn: Turn, reports: list[Started]) -> None:
    starts = _valid(turn, reports, lambda r: Start(r.job, r.token, r.node, r.pid, r.device))
    moved = attempts.start(turn.tx, turn.epoch, [start for _, start in starts])
    of_members: list[Start] = []
    for report, start in starts:
        live = turn.memory.of_token(report.job, report.token)
        if live is not None:
            live.running = True
            turn.memory.start_by.pop(report.job, None)
            if live.gang:
                of_members.append(start)
    gangs.start(turn.tx, of_members)
    turn.counts["started"] += len(moved)


def _unheard(turn: Turn, reports: list[Ended]) -> list[Started]:
    """Starts of which only the end tells, because the word of them was lost."""
    found = []
    for report in reports:
        live = turn.memory.of_token(report.job, report.token)
        if live is not None and not live.running and report.process is not None:
            found.append(Started(**live.identity, **report.process.model_dump()))
    return found


def told(turn: Turn, reports: list[Metrics]) -> None:
    told = [(report, row) for report in reports for row in report.rows]
    rows = _valid(turn, told, lambda one: NewMetric(one[0].job, one[0].token, one[0].node, _moment(one[1]), one[1]))
    turn.counts["metrics"] += metrics.append(turn.tx, [row for _, row in rows])


def ended(turn: Turn, reports: list[Ended]) -> None:
    ends = attempt_ends.judged(turn, gang_members.sort_out(turn, reports))
    endings = _valid(turn, ends, attempt_ends.ending)
    settled = attempts.end(turn.tx, turn.epoch, [ending for _, ending in endings])
    suspects: list[tuple[int, str]] = []
    for (end, ending), answer in zip(endings, settled, strict=True):
        report = end.report
        if answer.committed:
            attempt_ends.settle(turn, end, ending, answer)
        else:
            log.info(line("report_fenced", job=report.job, token=report.token, node=report.node))
        reply = ReportReply(
            committed=answer.committed,
            final=attempt_ends.is_final(report, answer),
            message=None if answer.committed else _FENCED,
        )
        turn.outbox.reply(report.reply_to, reply)
        if answer.committed and end.is_suspicious:
            suspects.append((report.token, report.node))
    suspect(turn, suspects)
    turn.counts["ended"] += sum(answer.committed and not answer.repeated for answer in settled)


_FENCED = "this attempt is not the job's current one any more: its place was given to another, or the job was cancelled"


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
    at = row.get("at")  # a job may report something of that name: it is no number then, or any
    return float(at) if isinstance(at, int | float) and 0 <= at <= LATEST_SECOND else time.time()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
