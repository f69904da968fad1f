"""Members of gangs end one by one; the gang's attempt is over once all of them have.

Until then each end is noted in the record, for a leader that comes meanwhile. As soon as one member ends in any other
way than with a result, the others are told to end, too. What that makes of the job: `gang_ends.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence

from broker.scheduler import stopping
from broker.scheduler.live import Live, MemberEnd
from broker.scheduler.log_lines import line
from broker.scheduler.memory import Memory
from broker.scheduler.turn import Turn
from cyxwiz_tasks.errors import CyxwizError
from cyxwiz_tasks.protocol.controls import Stop
from cyxwiz_tasks.protocol.reports import Ended, ReportReply
from cyxwiz_tasks.settings import Settings
from cyxwiz_tasks.states import Cause
from db import gangs

log = logging.getLogger(__name__)

_FENCED = "this member's gang is over: its places were given to others, or the job was cancelled"


def sort_out(turn: Turn, reports: Sequence[Ended]) -> list[Ended]:
    """Those of these reports that are not of members of gangs which are under way. The others are handled."""
    of_members, rest = list[tuple[Live, Ended]](), list[Ended]()
    for report in reports:
        live = turn.memory.of_token(report.job, report.token)
        if live is not None and live.gang:
            of_members.append((live, report))
        else:
            rest.append(report)
    if of_members:
        _reported(turn, of_members)
    return rest


def take_back(turn: Turn, members: Iterable[Live], cause: Cause, message: str, *, stop: bool) -> int:
    """The scheduler gives these members up; with `stop` their nodes are told so. Returns how many there were."""
    if cause == Cause.DEADLINE:
        members = {member.token: member for live in members for member in live.gang}.values()
    found = [live for live in members if live.ended is None]
    _note(turn, [(live, _lost(live, cause, message)) for live in found], taken_back=True)
    for live in found:
        log.info(line("member_lost", job=live.job_id, rank=live.rank, node=live.node_id, cause=cause))
        if stop:
            turn.outbox.control(live.node_id, Stop(job=live.job_id, token=live.token, grace_seconds=0))
    return len(found)


def restore(memory: Memory, settings: Settings) -> None:
    """After a change of leaders: the last one may have died before it told those that must end with another."""
    for live in memory.live.values():
        if live.ended is None and not live.must_end and (first := _first_to_fail(live.gang)) is not None:
            live.follows = True
            live.stop, live.stop_said_at = stopping.following(live, _why(first), settings), 0.0


def _reported(turn: Turn, given: list[tuple[Live, Ended]]) -> None:
    good = list[tuple[Live, Ended]]()
    for live, report in given:
        try:
            gangs.MemberEnd(report.job, report.token, report.node, {"exit_code": report.exit_code})
        except CyxwizError as error:
            turn.outbox.reply(report.reply_to, ReportReply(committed=False, message=str(error)))
        else:
            good.append((live, report))
    before = {live.token for live, _ in good if live.ended is not None}
    noted = _note(turn, [(live, report) for live, report in good if live.token not in before])
    for live, report in good:
        committed = live.token in noted or live.token in before
        # The scheduler says the last word on a gang: no node knows when all have ended.
        reply = ReportReply(committed=committed, final=False, message=None if committed else _FENCED)
        turn.outbox.reply(report.reply_to, reply)


def _note(turn: Turn, ends: list[tuple[Live, Ended]], *, taken_back: bool = False) -> set[int]:
    """Record ends of members, of each the first; the tokens of those that had not ended."""
    first = {live.token: (live, _made_of(live, report, taken_back)) for live, report in reversed(ends)}
    rows = [gangs.MemberEnd(live.job_id, live.token, end.report.node, end.row) for live, end in first.values()]
    noted = gangs.end(turn.tx, rows)
    for token in noted:
        live, found = first[token]
        live.ended = found
    for job_id in dict.fromkeys(first[token][0].job_id for token in noted):
        gang = turn.memory.live[job_id].gang
        if all(member.ended is not None for member in gang):
            turn.gangs_over.append(job_id)
        elif (failed := _first_to_fail(gang)) is not None:
            stopping.end_with(turn, failed, _why(failed))
    return noted


def _made_of(live: Live, report: Ended, taken_back: bool) -> MemberEnd:
    told = live.must_end and not live.follows
    return MemberEnd(report.model_copy(update={"reply_to": None}), told, live.follows, taken_back)


def _first_to_fail(gang: Sequence[Live]) -> Live | None:
    return next((one for one in gang if one.ended is not None and one.ended.report.outcome != "completed"), None)


def _why(failed: Live) -> str:
    return f"rank {failed.rank} of its gang has ended"


def _lost(live: Live, cause: Cause, message: str) -> Ended:
    return Ended(
        **live.identity,
        outcome="failed",
        cause=cause,
        message=message,
        seconds=time.monotonic() - live.assigned_at,
    )
