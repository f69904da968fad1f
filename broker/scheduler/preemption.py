"""Whose place an urgent job takes that fits nowhere. Pure: it reads the models in memory and changes nothing.

On each node that could run it, less urgent attempts are taken away in thought, the least urgent first and of these the
cheapest, until it fits; then those that turn out not to be needed are put back. Of all nodes, the one is chosen where
the fewest go, the least urgent, and the least work is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from broker.scheduler.node import Node
from broker.scheduler.places import Wanted, fits, take, without

#: Two losses that differ by less are equal: they are known to about a second, and a restart itself takes some.
_EQUAL_SECONDS = 10.0


class Holder(NamedTuple):
    """What is known of an attempt that holds a place."""

    #: `Priority.rank` of its job
    rank: int
    #: work since its last checkpoint, or since it was placed; of a gang that of all members
    lost_seconds: float
    #: it was told to end, and gives its place back soon
    stopping: bool
    #: attempts of its job before this one
    restarts: int = 0

    @property
    def order(self) -> tuple[float, ...]:
        """Whose is lower goes first: the least urgent, who loses least, who was restarted least."""
        return self.rank, self.lost_seconds // _EQUAL_SECONDS, self.restarts, self.lost_seconds


class Clearing(NamedTuple):
    """The place is free once all `awaited` have ended; the `victims` among them are still to be told."""

    node_id: str
    wanted: Wanted
    victims: tuple[str, ...]
    awaited: frozenset[str]


def choose(
    nodes: Iterable[tuple[Node, Wanted]],
    rank: int,
    holders: Mapping[str, Holder],
    promised: Mapping[str, Sequence[Wanted]],
) -> Clearing | None:
    """The place to clear for a job of this rank; None: nobody less urgent stands in its way anywhere.

    `nodes` are those that take work and could ever run it; `promised` are, by node, the jobs for which places are
    being cleared there already. Without victims, a place becomes free anyway, or is free.
    """
    best: tuple[tuple[float, ...], Clearing] | None = None
    for node, wanted in nodes:
        found = _clear(node, wanted, rank, holders, promised.get(node.node_id, ()))
        if found is None:
            continue
        cost = _cost(found.victims, holders)
        if best is None or cost < best[0]:
            best = cost, found
        if len(found.victims) == 0:
            break
    return best[1] if best is not None else None


def _clear(
    node: Node, wanted: Wanted, rank: int, holders: Mapping[str, Holder], promised: Sequence[Wanted]
) -> Clearing | None:
    stopping = [id for id in node.holdings if id in holders and holders[id].stopping]
    # What is kept is part of what was promised.
    room = without(node, stopping, kept_for=node.kept)
    for number, other in enumerate(promised):
        if not take(room, f"promised {number}", other):
            return None
    if fits(room, wanted):
        return Clearing(node.node_id, wanted, (), frozenset(stopping))
    candidates = sorted(
        (id for id in node.holdings if id in holders and id not in stopping and holders[id].rank < rank),
        key=lambda id: holders[id].order,
    )
    victims = smallest(candidates, lambda ids: fits(without(room, ids), wanted))
    return Clearing(node.node_id, wanted, victims, frozenset({*stopping, *victims})) if victims else None


def smallest(candidates: list[str], suffice: Callable[[list[str]], bool]) -> tuple[str, ...]:
    """Of `candidates`, in the order in which they should go, as few as suffice; none if all do not."""
    for id in candidates:
        if suffice([id]):
            return (id,)
    chosen: list[str] = []
    for id in candidates:
        chosen.append(id)
        if suffice(chosen):
            break
    else:
        return ()
    for id in reversed(chosen.copy()):
        rest = [other for other in chosen if other != id]
        if suffice(rest):
            chosen = rest
    return tuple(chosen)


def _cost(victims: tuple[str, ...], holders: Mapping[str, Holder]) -> tuple[float, ...]:
    ranks, lost_seconds = [holders[id].rank for id in victims], sum(holders[id].lost_seconds for id in victims)
    restarts = sum(holders[id].restarts for id in victims)
    return len(ranks), max(ranks, default=-1), sum(ranks), lost_seconds // _EQUAL_SECONDS, restarts, lost_seconds
