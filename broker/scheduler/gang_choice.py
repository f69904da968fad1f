"""Which nodes a gang gets: as many as it has members, all different, near each other. Pure.

What is preferred comes in this order, and the table stands in docs/scheduling.md: all members in one region, or else in
as few as that takes; the fastest slowest link, since a collective operation is as fast as that; the highest scores.
A node without a region counts as being in one with all others that have none, and a link of unknown speed as the
slowest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_NOWHERE = float("-inf")


def choose(
    scores: NDArray[np.floating[Any]], regions: NDArray[np.int32], speeds: NDArray[np.float64], members: int
) -> list[int]:
    """Rows for the ranks from 0 on; empty if the gang does not fit now.

    Of each row `scores` has the score, minus infinity where no member fits, `regions` a number for its region, and
    `speeds` its network's speed, 0 where that is not known.
    """
    rows = np.flatnonzero(scores != _NOWHERE)
    if len(rows) < members:
        return []
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    numbers, region, sizes = np.unique(regions[rows], return_inverse=True, return_counts=True)
    enough = np.flatnonzero(sizes >= members)
    if len(enough):
        found = [_fastest(rows[region == at], speeds, members) for at in enough]
        best = max(found, key=lambda chosen: (speeds[chosen].min(), scores[chosen].sum(), -chosen[0]))
        return [int(row) for row in best]
    chosen: list[int] = []
    # The largest first makes for the fewest regions.
    for at in sorted(range(len(numbers)), key=lambda at: (-sizes[at], int(numbers[at]))):
        here = _fastest(rows[region == at], speeds, min(members - len(chosen), int(sizes[at])))
        chosen += [int(row) for row in here]
        if len(chosen) == members:
            break
    return chosen


def _fastest(rows: NDArray[np.intp], speeds: NDArray[np.float64], members: int) -> NDArray[np.intp]:
    """Of rows by falling score, those that have the fastest slowest link, and of these the ones with most score."""
    slowest = np.partition(speeds[rows], len(rows) - members)[len(rows) - members]
    fastest: NDArray[np.intp] = rows[speeds[rows] >= slowest][:members]
    return fastest
