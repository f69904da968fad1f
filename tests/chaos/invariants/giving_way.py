"""Jobs that give their place to others: for whom, how often, and what it costs them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from tests.chaos.history import URGENT, History, Row
from tests.chaos.invariants.witness import saved_before

#: of each node, by kind; other kinds need none
_GPUS = {"gpu": 1, "saves": 1, "wide": 2, "urgent": 2, "gang_urgent": 1}
#: settings `preempt_limit`, which is above `consolidate_limit`
_MOST_TIMES = 3


def for_good_reason(history: History) -> Iterator[str]:
    """Only for a more urgent job; or for one that needs more GPUs, if who moves has a checkpoint to go on from."""
    for row in history.asked_to_leave:
        job_id, claimant, attempt = row["job_id"], row["claimant"], _attempt(history, row)
        if attempt is None:
            yield f"job {job_id}: who holds token {row['token']} was asked to leave and is not in the record"
            continue
        what = f"job {job_id} ({history.kind(job_id)}) had to leave for {claimant} ({history.kind(claimant)})"
        if not {place["node_id"] for place in history.places(attempt)} & set(row["node_ids"]):
            yield f"{what}, which gets a place on other nodes"
        if not _is_more_urgent(history, claimant, job_id):
            yield from (f"{what}, {wrong}" for wrong in _why_not_moved(history, claimant, attempt))


def not_too_often(history: History) -> Iterator[str]:
    """A job that gave its place back so often is left alone; whose node went away first has not given it back."""
    tokens = defaultdict[str, set[int]](set)
    for row in history.asked_to_leave:
        attempt = _attempt(history, row)
        if attempt is not None and attempt["state"] == "preempted":
            tokens[row["job_id"]].add(row["token"])
    for job_id, gave in tokens.items():
        if len(gave) > _MOST_TIMES:
            yield f"job {job_id} had to leave {len(gave)} times, and {_MOST_TIMES} are allowed"


def no_step_is_lost(history: History) -> Iterator[str]:
    """Who was stopped and had saved goes on from there: a stop that is announced costs nothing that was saved."""
    for job_id, attempts in history.attempts.items():
        if history.kind(job_id) != "saves":
            continue
        for before, after in pairwise(attempts):
            lines = history.steps.get((job_id, after["number"]), [])
            saved = _last(history.steps.get((job_id, before["number"]), []), "saved")
            if before["state"] == "preempted" and lines and _last(lines, "restored") < saved:
                found = _last(lines, "restored")
                yield (
                    f"job {job_id}: attempt {before['number']} was stopped and had saved step {saved}, "
                    f"and attempt {after['number']} went on from {found}"
                )


def _attempt(history: History, row: Row) -> Row | None:
    return next((one for one in history.attempts.get(row["job_id"], []) if one["token"] == row["token"]), None)


def _is_more_urgent(history: History, claimant: str, other: str) -> bool:
    return history.kind(claimant) in URGENT and history.kind(other) not in URGENT


def _why_not_moved(history: History, claimant: str, attempt: Row) -> Iterator[str]:
    job_id, number = attempt["job_id"], attempt["number"]
    if history.kind(job_id) in URGENT:
        yield "which is less urgent or as much"
    if _GPUS.get(history.kind(claimant) or "", 0) <= _GPUS.get(history.kind(job_id) or "", 0):
        yield "which is not bigger"
    if not saved_before(history, job_id, number + 1):
        yield "and had saved nothing"


def _last(lines: list[Row], what: str) -> int:
    return max((line[what] for line in lines if line["step"] == what), default=0)
