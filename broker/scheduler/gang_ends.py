"""A gang whose members have all ended: one end of one job, judged, recorded and told as that of any other.

It completed if every member did, and its result is that of rank 0. Otherwise one member is why: the one whose end
explains most, since when one process dies the others often fail for that a moment later, and may be heard first. If the
whole gang was told to end, that is why, whatever its members made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from broker.scheduler import attempt_ends
from broker.scheduler.live import Live
from broker.scheduler.standing import carried_to_its_end, suspect_member
from broker.scheduler.turn import Turn
from cyxwiz_tasks.protocol.names import log_key
from cyxwiz_tasks.protocol.reports import Ended
from cyxwiz_tasks.states import TERMINAL_JOB_STATES, Cause
from db import attempts, gangs

#: The earlier, the more it explains; what is not here comes just before `network`. A node that stops gives its member's
#: place back by itself, and the others fail for that; those that were told to end for another's end explain nothing.
_EXPLAINING = (
    *(Cause.CANCELLED, Cause.HARDWARE, Cause.OUT_OF_MEMORY, Cause.NODE_LOST, Cause.PREEMPTED, Cause.CRASHED),
    *(Cause.DEADLINE, Cause.TIME_LIMIT, Cause.HUNG, Cause.ERROR, Cause.NETWORK),
)


def settle(turn: Turn) -> None:
    """Do what follows for all gangs that are over since this was called last."""
    over, turn.gangs_over = [turn.memory.live[job_id].gang for job_id in dict.fromkeys(turn.gangs_over)], []
    if not over:
        return
    told = [_end_of(turn, gang) for gang in over]
    ends = attempt_ends.judged(turn, told)
    # The record knows the attempt by the node of rank 0, and the rules by that of the member that is why.
    endings = [replace(attempt_ends.ending(end), node_id=gang[0].node_id) for end, gang in zip(ends, over, strict=True)]
    settled = attempts.end(turn.tx, turn.epoch, endings)
    gangs.close(turn.tx, [gang[0].token for gang in over])
    for gang, end, ending, answer in zip(over, ends, endings, settled, strict=True):
        assert answer.committed, f"gang {answer.token} was not its job's current attempt"
        end.blames_node = not any(member.ended and member.ended.taken_back for member in gang)
        attempt_ends.settle(turn, end, ending, answer)
        if answer.job_state in TERMINAL_JOB_STATES:
            _end_logs(turn, gang)
        if end.is_suspicious:
            suspect_member(turn, gang[0].token, end.report.node)
        if end.report.outcome == "completed":
            for member in gang[1:]:
                carried_to_its_end(turn, member.node_id)
    turn.counts["ended"] += len(over)


def _end_logs(turn: Turn, gang: Sequence[Live]) -> None:
    """Nobody on a node does: none of them knows that this was the job's last attempt."""
    for member in gang:
        key = log_key(member.job_id, member.rank)
        turn.outbox.command("XADD", key, "*", "end", str(member.number))
        turn.outbox.command("EXPIRE", key, turn.settings.result_ttl_seconds)


def _end_of(turn: Turn, gang: Sequence[Live]) -> Ended:
    """The end of a whole gang, as if rank 0 had reported it. Nobody on a node tells Celery of it."""
    lead = gang[0]
    reports = [member.ended.report for member in gang if member.ended is not None]
    if all(report.outcome == "completed" for report in reports):
        return reports[0].model_copy(update={"untold": True})
    why = min(gang, key=_explains)
    assert why.ended is not None
    report = why.ended.report
    changed: dict[str, Any] = {"attempt": lead.number, "token": lead.token, "untold": True}
    if report.outcome == "retry" and why.rank:
        # Only the message of rank 0 has what waits for the job in Celery.
        first = reports[0]
        report = first if first.outcome == "retry" else report
        changed |= {} if first.outcome == "retry" else {"outcome": "failed", "cause": Cause.ERROR}
    cluster = turn.memory.cluster
    name = cluster.node(why.node_id).name if why.node_id in cluster else why.node_id
    message = f"rank {why.rank} of {len(gang)}, on node {name}: {report.message or report.cause or report.outcome}"
    return report.model_copy(update=changed | {"message": message})


def _explains(member: Live) -> tuple[bool, bool, int, int]:
    """The lowest is why a gang ended."""
    end = member.ended
    assert end is not None
    cause = _cause(end.report)
    place = _EXPLAINING.index(cause) if cause in _EXPLAINING else _EXPLAINING.index(Cause.NETWORK)
    if cause in (Cause.PREEMPTED, Cause.CANCELLED) and not end.report.by_node:
        # Of a gang that was told to end, who did so explains more than who failed instead.
        place = len(_EXPLAINING) if end.followed else -1 if end.was_told else place
    return end.report.outcome == "completed", end.was_told, place, member.rank


def _cause(report: Ended) -> Cause:
    usual = {"preempted": Cause.PREEMPTED, "cancelled": Cause.CANCELLED}
    return report.cause or usual.get(report.outcome, Cause.ERROR)
