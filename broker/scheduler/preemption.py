"""Whose place an urgent job takes that fits nowhere. Pure: it reads the models in memory and changes nothing.

On each node that could run it, less urgent attempts are taken away in thought, the least urgent first and of these the
cheapest, until it fits; then those that turn out not to be needed are put back. Of all nodes, the one is chosen where
the fewest go, the least urgent, and the least work is lost.

A gang needs several nodes, all or none. They are chosen one after the other, the cheapest first. A gang that has to go
does so with all its members, which costs once and makes its other nodes cheaper, so the choice is made again for a few
gangs that would go from the start, and the cheapest choice of all is taken. That is not always the cheapest there is:
two gangs that are cheap only together are not found, nor is a node on which others than its own cheapest should go.
Neither regions nor links are looked at: where its places become free, the gang gets the best nodes there are by then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from broker.scheduler.node import Node
from broker.scheduler.places import Wanted, fits, take, without

#: Two losses that differ by less are equal: they are known to about a second, and a restart itself takes some.
_EQUAL_SECONDS = 10.0
#: gangs of which it is tried whether they had better go first: what it costs has a limit
_GANGS = 8


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
    #: of a gang, the names of all its members: they go together
    gang: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[float, ...]:
        """Whose is lower goes first: the least urgent, who loses least, who was restarted least."""
        return self.rank, self.lost_seconds // _EQUAL_SECONDS, self.restarts, self.lost_seconds


class Place(NamedTuple):
    """What a job, or one member of a gang, needs of a node."""

    node_id: str
    wanted: Wanted


class Clearing(NamedTuple):
    """The place, or all places of a gang, are free once all `awaited` have ended; the `victims` among them are still to
    be told. Of a gang that goes, one is among the victims, and is told with all others.
    """

    node_id: str
    wanted: Wanted
    victims: tuple[str, ...]
    awaited: frozenset[str]
    #: for a gang: those of its other members, on other nodes
    others: tuple[Place, ...] = ()

    @property
    def places(self) -> tuple[Place, ...]:
        return (Place(self.node_id, self.wanted), *self.others)


def choose(
    nodes: Iterable[tuple[Node, Wanted]],
    rank: int,
    holders: Mapping[str, Holder],
    promised: Mapping[str, Sequence[Wanted]],
    members: int = 1,
) -> Clearing | None:
    """The place to clear for a job of this rank, or the places for as many `members` of a gang; None: nobody less
    urgent stands in its way anywhere, or on too few nodes.

    `nodes` are those that take work and could ever run it; `promised` are, by node, the jobs for which places are
    being cleared there already. Without victims, the places become free anyway, or are free.
    """
    sites: list[_Site] = []
    clear: list[_Site] = []
    for node, wanted in nodes:
        site = _site(node, wanted, rank, holders, promised.get(node.node_id, ()))
        if site is None:
            continue
        sites.append(site)
        if not site.victims:
            clear.append(site)
        if len(clear) == members:
            return _clearing(clear, (), holders)
    if len(sites) < members:
        return None
    gangs = _gangs(sites, holders) if members > 1 else ()
    plans = [_plan(sites, members, holders, first) for first in ((), *((id,) for id in gangs))]
    chosen, victims = min(plans, key=lambda plan: _cost(plan[1], holders))
    return _clearing(chosen, victims, holders)


@dataclass(eq=False)
class _Site:
    """A node on which the job fits once some have gone."""

    place: Place
    #: as it is without those that stop anyway, and with what is promised to others
    room: Node
    stopping: frozenset[str]
    #: who may have to go, in the order in which they should
    candidates: list[str]
    #: who has to, if nobody goes for other reasons
    victims: tuple[str, ...] = ()

    def without(self, gone: Collection[str]) -> Node:
        return without(self.room, [id for id in self.candidates if id in gone])

    def fits_without(self, gone: Collection[str]) -> bool:
        return fits(self.without(gone), self.place.wanted)

    def victims_besides(self, gone: Collection[str]) -> tuple[str, ...]:
        """Who has to go besides these; nobody, too, where it does not fit if all go."""
        room = self.without(gone)
        if fits(room, self.place.wanted):
            return ()
        rest = [id for id in self.candidates if id not in gone]
        return smallest(rest, lambda ids: fits(without(room, ids), self.place.wanted))


def _site(
    node: Node, wanted: Wanted, rank: int, holders: Mapping[str, Holder], promised: Sequence[Wanted]
) -> _Site | None:
    stopping = [id for id in node.holdings if id in holders and holders[id].stopping]
    # What is kept is part of what was promised.
    room = without(node, stopping, kept_for=node.kept)
    for number, other in enumerate(promised):
        if not take(room, f"promised {number}", other):
            return None
    candidates = sorted(
        (id for id in node.holdings if id in holders and id not in stopping and holders[id].rank < rank),
        key=lambda id: holders[id].order,
    )
    site = _Site(Place(node.node_id, wanted), room, frozenset(stopping), candidates)
    site.victims = site.victims_besides(())
    return site if site.victims or fits(room, wanted) else None


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


def _gangs(sites: Iterable[_Site], holders: Mapping[str, Holder]) -> list[str]:
    """One name of each of the gangs that it may pay to let go first, since they hold several of these places."""
    held: dict[tuple[str, ...], list[str]] = {}
    for site in sites:
        for id in site.candidates:
            if holders[id].gang:
                held.setdefault(holders[id].gang, []).append(id)
    several = [names[0] for names in held.values() if len(names) > 1]
    return sorted(several, key=lambda id: holders[id].order)[:_GANGS]


def _plan(
    sites: Sequence[_Site], members: int, holders: Mapping[str, Holder], first: Sequence[str]
) -> tuple[list[_Site], tuple[str, ...]]:
    """The cheapest sites one by one, once those named `first` have gone; and who has to go for all of them together."""
    victims, gone = list(first), with_their_gangs(first, holders)
    more = {site: site.victims_besides(gone) if gone.intersection(site.candidates) else site.victims for site in sites}
    costs = {site: _cost(found, holders) for site, found in more.items()}
    chosen: list[_Site] = []
    while len(chosen) < members:
        site = min(costs, key=costs.__getitem__)
        del costs[site]
        chosen.append(site)
        victims += more[site]
        gone |= (new := with_their_gangs(more[site], holders))
        for other in costs if len(new) > len(more[site]) else ():
            if new.intersection(other.candidates):
                more[other] = other.victims_besides(gone)
                costs[other] = _cost(more[other], holders)
    return chosen, _needed(chosen, victims, holders)


def _needed(chosen: Iterable[_Site], victims: list[str], holders: Mapping[str, Holder]) -> tuple[str, ...]:
    """Those of the victims without whom some place would not be free: a gang may have made others needless."""
    needed, gone = list(victims), with_their_gangs(victims, holders)
    for id in sorted(victims, key=lambda id: holders[id].order, reverse=True):
        own = with_their_gangs((id,), holders)
        if all(site.fits_without(gone - own) for site in chosen if own.intersection(site.candidates)):
            needed.remove(id)
            gone -= own
    return tuple(needed)


def with_their_gangs(names: Iterable[str], holders: Mapping[str, Holder]) -> set[str]:
    """These, and all members of those that are of gangs."""
    return {member for id in names for member in (id, *holders[id].gang)}


def _clearing(chosen: Sequence[_Site], victims: tuple[str, ...], holders: Mapping[str, Holder]) -> Clearing:
    gone = with_their_gangs(victims, holders)
    awaited = frozenset[str]().union(*(site.stopping | gone.intersection(site.candidates) for site in chosen))
    first, *others = [site.place for site in chosen]
    return Clearing(first.node_id, first.wanted, victims, awaited, tuple(others))


def _cost(victims: tuple[str, ...], holders: Mapping[str, Holder]) -> tuple[float, ...]:
    ranks, lost_seconds = [holders[id].rank for id in victims], sum(holders[id].lost_seconds for id in victims)
    restarts = sum(holders[id].restarts for id in victims)
    return len(ranks), max(ranks, default=-1), sum(ranks), lost_seconds // _EQUAL_SECONDS, restarts, lost_seconds
