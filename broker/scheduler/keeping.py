"""What is kept for whom, told to people: a part of the answer to `why`."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from broker.scheduler.backlog import Waiting
from broker.scheduler.claims import Claim
from broker.scheduler.memory import Memory
from broker.scheduler.places import able, fits, without

#: of those that a job waits for, so many are named
_NAMED = 3


def sentences(memory: Memory, waiting: Waiting) -> list[str]:
    """Of a job that waits: the place that is kept for it, or for whom places are kept where it would fit."""
    claim = memory.claims.get(waiting.job_id)
    if claim is not None:
        if waiting.resources.nodes > 1:
            return [_of_gang(memory, memory.claims.of(claim.job_id))]
        return [_own(memory, claim)]
    found = able(memory.cluster, waiting.resources, waiting.applicant)
    said = []
    for other in memory.claims:
        for node, wanted in found.one(memory.cluster, other.node_id):
            if fits(without(node, (), kept_for=[other.job_id]), wanted):
                text = f"It would fit on {node.name}, where the place is kept for job {other.job_id}{_from(other)}"
                shorter = waiting.time_limit_seconds is None and other.starts_at is not None
                said.append(f"{text}; with a time_limit it could run there until then." if shorter else f"{text}.")
    return said[:_NAMED]


def _own(memory: Memory, claim: Claim) -> str:
    name = memory.cluster.node(claim.node_id).name if claim.node_id in memory.cluster else claim.node_id
    awaited = sorted(id for id in claim.awaited if id in memory.live)
    jobs = ", ".join(memory.live[name].job_id for name in awaited[:_NAMED]) + (
        f" and {len(awaited) - _NAMED} more" if len(awaited) > _NAMED else ""
    )
    if claim.clearing:
        return f"Node {name} is being cleared for it: job {jobs} gives its place back."
    if claim.starts_at is not None:
        last = max(awaited, key=lambda id: memory.end_of(id) or 0.0, default=None)
        when = f", when job {last} has to end at the latest" if last else ""
        return f"Node {name} is kept for it{_from(claim)}{when}."
    return (
        f"Node {name} is kept for it: it starts once job {jobs} has ended, and without a time limit nobody knows when."
    )


def _of_gang(memory: Memory, claims: list[Claim]) -> str:
    there = [(memory.cluster.node(one.node_id), one.awaited) for one in claims if one.node_id in memory.cluster]
    names, busy = [node.name for node, _ in there], sum(bool(names & node.holdings.keys()) for node, names in there)
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    if claims[0].clearing:
        return f"Nodes {shown} are being cleared for it: on {busy} of these {len(claims)} jobs give their places back."
    when = _from(claims[0]) or "; without time limits nobody knows from when on"
    return f"Nodes {shown} are kept for it{when}: on {busy} of these {len(claims)} jobs have still to end."


def _from(claim: Claim) -> str:
    at = _clock(claim)
    return f" from about {at:%H:%M} UTC on {at:%d %B}" if at is not None else ""


def _clock(claim: Claim) -> datetime | None:
    """When its place is expected to be clear, by the wall's clock."""
    if claim.starts_at is None:
        return None
    return datetime.fromtimestamp(time.time() + claim.starts_at - time.monotonic(), UTC)
