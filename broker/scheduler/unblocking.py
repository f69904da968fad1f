"""Jobs that come after others: recorded with what they wait for, and let go, or ended, when that is decided.

All of it happens in the transaction that ends the last of those others, so that no crash leaves a job behind.
"""

from __future__ import annotations

import time
from collections import defaultdict

from broker.scheduler.ending import finish
from broker.scheduler.messages import Arrival
from broker.scheduler.turn import Turn
from cyxwiz_tasks.ids import member_id
from cyxwiz_tasks.protocol.updates import Update
from cyxwiz_tasks.states import ACCEPTED, Cause, JobState
from db import dependencies, jobs
from db.dependencies import Dependency, Verdict


def dependencies_of(arrival: Arrival) -> list[Dependency]:
    """What a job comes after; of a whole array with its own kind, or of the one job there that has its index."""
    found = []
    for after in dict.fromkeys(arrival.header.after):
        if after.kind == "match":
            found.append(Dependency(arrival.id, member_id(after.id, arrival.header.array_index or 0), "ok"))
        else:
            found.append(Dependency(arrival.id, after.id, after.kind))
    return found


def record(turn: Turn, arrivals: list[Arrival]) -> None:
    """Keep what new jobs come after. Some of it may have ended before."""
    rows = [dependency for arrival in arrivals for dependency in dependencies_of(arrival)]
    if rows:
        dependencies.record(turn.tx, rows)
        _decide(turn, sorted({row.on_id for row in rows}))


def unblock(turn: Turn) -> None:
    """Look at those that waited for jobs that have ended in this turn; they may end, too, and so on."""
    while turn.over:
        over, turn.over = turn.over, []
        awaited = turn.memory.dependencies.awaited(over)
        if awaited:
            _decide(turn, awaited)


def _decide(turn: Turn, on_ids: list[str]) -> None:
    broken: dict[str, list[str]] = defaultdict(list)
    for verdict in dependencies.judge(turn.tx, on_ids):
        if not verdict.met:
            broken[_broken(verdict)].append(verdict.job_id)
        elif (free := turn.memory.dependencies.met(verdict.job_id, verdict.on_id)) is not None:
            turn.memory.wait(*free)
            update = Update(kind="state", state=ACCEPTED, message="what it waited for has ended", at=time.time())
            turn.outbox.update(verdict.job_id, update)
            turn.counts["unblocked"] += 1
    for message, job_ids in broken.items():
        for job_id in jobs.cancel_waiting(turn.tx, turn.epoch, job_ids, Cause.DEPENDENCY, message, "scheduler"):
            turn.memory.stop_waiting(job_id)
            finish(turn, job_id, JobState.CANCELLED, Cause.DEPENDENCY, message)
            turn.counts["cancelled"] += 1


def _broken(verdict: Verdict) -> str:
    if verdict.state is None:
        # What does not exist is refused on arrival, but for a `match`.
        return (
            f"it was to run after {verdict.on_id}, and there is no such job: a match is between two arrays "
            "with the same indexes"
        )
    asked = "completes" if verdict.kind == "ok" else "fails"
    return f"it was to run only if {verdict.on_id} {asked}, which is {verdict.state}"
