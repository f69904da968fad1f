"""The plan of a run, a pure function of its seed: which fault when, on what, for how long."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: before the first fault jobs get going, and after the last one they come to an end
_WARM_UP_SHARE = 0.04
#: rest of a part of the stack after a fault, before its next one, in seconds
_REST_SECONDS = 2.0


@dataclass(frozen=True)
class Kind:
    """What a schedule must know of a kind of fault."""

    name: str
    #: the part of the stack that it breaks: two faults of one scope never overlap
    scope: str
    #: shortest and longest time from its injection to its healing
    seconds: tuple[float, float]
    #: of `scopes`, those that must be well meanwhile, for the fault to mean anything
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Planned:
    """One fault to come. Times are seconds from the start of the workload."""

    number: int
    kind: str
    at: float
    seconds: float
    #: which of several alike (node, scheduler, job, ...): taken modulo how many there are
    choice: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan(seed: int, kinds: Sequence[Kind], faults: int, seconds: float, nodes: int) -> list[Planned]:
    """So many faults spread over `seconds`, every kind about equally often, in the order of their times.

    A scope `node` stands for one of `nodes` nodes each.
    """
    rng = random.Random(seed)
    start, gap = seconds * _WARM_UP_SHARE, seconds * (1 - _WARM_UP_SHARE) / max(faults, 1)
    deck: list[Kind] = []
    free_at: dict[str, float] = {}
    planned: list[Planned] = []
    for number in range(faults):
        moment = start + (number + rng.random() * 0.8) * gap
        if not deck:
            deck = rng.sample(list(kinds), len(kinds))
        kind, choice, at = _soonest(rng, deck, moment, free_at, nodes)
        deck.remove(kind)
        lasts = rng.uniform(*kind.seconds)
        for scope in _scopes(kind, choice, nodes):
            free_at[scope] = max(free_at.get(scope, 0.0), at + lasts + _REST_SECONDS)
        planned.append(Planned(number, kind.name, round(at, 3), round(lasts, 3), choice))
    return sorted(planned, key=lambda one: one.at)


def _soonest(
    rng: random.Random, deck: Sequence[Kind], moment: float, free_at: dict[str, float], nodes: int
) -> tuple[Kind, int, float]:
    """The first kind of the deck that may strike at `moment`; if none may, the one that may soonest."""
    best: tuple[Kind, int, float] | None = None
    for kind in deck:
        choice = rng.randrange(1_000_000)
        # A node that is well is found if there is one.
        choices = [choice + step for step in range(nodes)] if kind.scope == "node" else [choice]
        for candidate in choices:
            ready = max(free_at.get(scope, 0.0) for scope in _scopes(kind, candidate, nodes))
            at = max(moment, ready)
            if best is None or at < best[2]:
                best = (kind, candidate, at)
            if at == moment:
                return best
    assert best is not None
    return best


def _scopes(kind: Kind, choice: int, nodes: int) -> list[str]:
    own = f"node{choice % nodes}" if kind.scope == "node" else kind.scope
    return [own, *kind.needs]
