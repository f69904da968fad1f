"""When places for a kind of job open on nodes that are busy, and when so many jobs before it have had theirs.

It is an estimate: jobs ahead are taken to need a place of the same kind, and to hold it equally long.

Pure: moments are given, and are of any one clock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from broker.scheduler.node import Node
from broker.scheduler.places import Wanted, take, without

#: places that are looked for on one node
_PLACES = 64


def openings(node: Node, wanted: Wanted, ends: Mapping[str, float | None], earliest: float) -> list[float]:
    """When places on a node open one after another, where whoever gets one keeps it. What is kept counts as free.

    `ends` has an end for each job there, or None: it is not counted on to end. `earliest`: now, or when it opens.
    """
    room, found = without(node, (), kept_for=node.kept), list[float]()
    _fill(room, wanted, earliest, found)
    known = [(end, job_id) for job_id in node.holdings if (end := ends.get(job_id)) is not None]
    for end, job_id in sorted(known):
        room.release(job_id)
        _fill(room, wanted, max(end, earliest), found)
    return found


def _fill(room: Node, wanted: Wanted, moment: float, found: list[float]) -> None:
    while len(found) < _PLACES and take(room, f"place {len(found)}", wanted):
        found.append(moment)


def turn_at(opening: Iterable[float], before: int, seconds_each: float | None) -> float | None:
    """When it is a job's turn that comes after `before` others, each of which holds a place so long.

    None: there is no place, or none is left for it and nobody knows how long the others take (`seconds_each` None).
    """
    moments = sorted(opening)
    if seconds_each is None or not moments:
        return moments[before] if before < len(moments) else None
    first, every = moments[0], max(1, round(seconds_each * 1000))
    return first + _nth([round((moment - first) * 1000) for moment in moments], before + 1, every) / 1000


def _nth(moments: Sequence[int], count: int, every: int) -> int:
    """The moment of the turn with this number, if each of these, the first of which is 0, comes again and again."""

    def turns(until: int) -> int:
        return sum((until - moment) // every + 1 for moment in moments if moment <= until)

    # Within one round each place that is open by then has one turn, so the round is found first.
    least, most = 0, -(-count // len(moments)) + -(-moments[-1] // every)
    rounds = bisect_left(range(least, most), count, key=lambda number: turns(number * every))
    until = rounds * every
    last = sorted((until - (until - moment) % every for moment in moments if moment <= until), reverse=True)
    return last[turns(until) - count]
