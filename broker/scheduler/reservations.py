"""Where the next in line, who fits nowhere now, can start soonest: a reservation, around which others are backfilled.

This is EASY backfilling: Lifka, "The ANL/IBM SP scheduling system" (1995); Mu'alem and Feitelson, "Utilization,
predictability, workloads, and user runtime estimates in scheduling the IBM SP2 with backfilling" (2001). The head of
the line has a reservation, and a job behind it may be placed sooner if that does not delay the head. Two things are
otherwise than there. What is short is not a number of equal processors but GPUs and more on one node, so a reservation
is of one node, and others have theirs on other nodes: `lines.py` says who. And many attempts here have no time limit:
nobody knows when they end, so they are never counted on. Where none with a limit makes room, the node is reserved where
least is missing, and what becomes free there is kept until it is enough.

A gang has its nodes reserved together: those where its members could start soonest. It starts with the last of them.

Pure: moments are given, and are of any one clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from broker.scheduler.backlog import Waiting
from broker.scheduler.claims import Claim, claim_on
from broker.scheduler.node import Node
from broker.scheduler.places import Wanted, fits, usable_gpus, without

_NEVER = float("inf")
#: when a job's attempt will have ended at the latest; None: nobody knows
EndOf = Callable[[str], float | None]


class Blocked(NamedTuple):
    """A job that fits nowhere now, although there are nodes that could run it if they were empty."""

    waiting: Waiting
    #: nodes to choose from
    nodes: Sequence[tuple[Node, Wanted]]


class _Place(NamedTuple):
    """A node that could be reserved. The better one is the lesser: sooner, and with less missing."""

    starts_at: float
    #: of what the job needs most: the share, 0..1, that no attempt with a known end gives back
    missing: float
    #: False sorts first: a job stays where its reservation is
    is_elsewhere: bool
    row: int
    awaited: tuple[str, ...]


def plan(
    blocked: Iterable[Blocked], end_of: EndOf, now: float, current: Mapping[str, Claim], taken: Collection[str] = ()
) -> list[Claim]:
    """A reservation for each of these, who come in the order of their lines; `current` are all claims, by their keys.

    None on nodes that are `taken`.
    """
    unavailable = {claim.node_id for claim in current.values() if claim.clearing} | set(taken)
    has = {job_id: {claim.node_id for claim in claims} for job_id, claims in _by_job(current).items()}
    return [
        claim
        for job in blocked
        for claim in _reserve(job, unavailable, end_of, now, has.get(job.waiting.job_id, frozenset()))
    ]


def _by_job(claims: Mapping[str, Claim]) -> dict[str, list[Claim]]:
    found: dict[str, list[Claim]] = {}
    for claim in claims.values():
        found.setdefault(claim.job_id, []).append(claim)
    return found


def _reserve(job: Blocked, unavailable: Collection[str], end_of: EndOf, now: float, at: Collection[str]) -> list[Claim]:
    """The best place for a job, or the best ones for the members of a gang; none if too few nodes are available.

    `at` are the nodes where its reservation is now.
    """
    places = {
        _place(node, wanted, end_of, now, is_elsewhere=node.node_id not in at): (node, wanted)
        for node, wanted in job.nodes
        if node.node_id not in unavailable
    }
    best = sorted(places)[: job.waiting.resources.nodes]
    if len(best) < job.waiting.resources.nodes:
        return []
    # All members begin with the last.
    starts_at = best[-1].starts_at if best[-1].starts_at < _NEVER else None
    found = []
    for member, place in enumerate(best):
        node, wanted = places[place]
        awaited = _needed(node, wanted, place.awaited)
        found.append(claim_on(node, job.waiting, wanted, awaited, starts_at=starts_at)._replace(member=member))
    return found


def _place(node: Node, wanted: Wanted, end_of: EndOf, now: float, *, is_elsewhere: bool) -> _Place:
    room = without(node, (), kept_for=node.kept)
    if fits(room, wanted):
        return _Place(now, 0.0, is_elsewhere, node.row, ())
    ends = {job_id: end_of(job_id) for job_id in node.holdings}
    known = sorted((max(now, end), job_id) for job_id, end in ends.items() if end is not None)
    awaited: list[str] = []
    for end, job_id in known:
        room.release(job_id)
        awaited.append(job_id)
        if fits(room, wanted):
            return _Place(end, 0.0, is_elsewhere, node.row, tuple(awaited))
    awaited += [job_id for job_id, end in ends.items() if end is None]
    return _Place(_NEVER, _missing(room, wanted), is_elsewhere, node.row, tuple(awaited))


def _missing(room: Node, wanted: Wanted) -> float:
    demand = wanted.demand
    return max(
        _short(demand.gpus, len(usable_gpus(room, wanted)) if demand.gpus else 0),
        _short(demand.cpus, room.cpus_free),
        _short(demand.ram_bytes, room.ram_free_bytes),
        _short(1, room.slots_free),
    )


def _short(needed: int, free: int) -> float:
    return (needed - max(0, min(needed, free))) / needed if needed else 0.0


def _needed(node: Node, wanted: Wanted, awaited: tuple[str, ...]) -> list[str]:
    """Of those that would be awaited, in the order of their ends, the ones without whom it would not fit."""
    needed = list(awaited)
    for job_id in reversed(awaited):
        rest = [other for other in needed if other != job_id]
        if fits(without(node, rest, kept_for=node.kept), wanted):
            needed = rest
    return needed
