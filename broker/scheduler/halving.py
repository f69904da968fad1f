"""Which jobs of an array end early. Pure: what they reported goes in, who has to go comes out.

A rung is a number of epochs. A job is on a rung once it has reported a later epoch, with the last value that it said
until then: values of an epoch under way do not count. On each rung the best `keep` of those that came so far go on, and
the others end, unless they have come to the next rung meanwhile; before so many have come that one of them would be
kept, nobody ends. So an early job may be ended by later, better ones, but never waits for them.

With keep=1/3: of the first two jobs on a rung both go on, of three one, of six two.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

from cyxwiz_tasks.early_stopping import SuccessiveHalving

#: what makes 0.29 * 100 the 29 that it is meant to be
_ROUNDING = 1e-9


class Cut(NamedTuple):
    """A job that has to go: on the rung of these epochs it is number `rank` of `of`, and the best `kept` go on."""

    job_id: str
    epoch: int
    value: float
    rank: int
    of: int
    kept: int


class Rungs:
    """Of one array: what each job had come to on each rung."""

    def __init__(self, rule: SuccessiveHalving) -> None:
        self.rule = rule
        #: by rung, the value of each job that has come so far, in the order in which they came
        self._values: dict[int, dict[str, float]] = {epoch: {} for epoch in rule.rung_epochs}
        self._said: dict[str, float] = {}
        #: how many rungs a job has come to
        self._reached: dict[str, int] = {}

    def tell(self, job_id: str, epoch: float, value: float | None) -> None:
        """A job reported this. One that begins again, after a loss of its node, keeps what it had come to.

        `value`: None of a report without the metric, which says no more than that the job has come to this epoch.
        """
        reached = self._reached.get(job_id, 0)
        for rung in self.rule.rung_epochs[reached:]:
            if epoch <= rung:
                break
            reached += 1
            if job_id in self._said:
                self._values[rung][job_id] = self._said[job_id]
        self._reached[job_id] = reached
        if value is not None:
            self._said[job_id] = value

    def cuts(self, going_on: Collection[str]) -> list[Cut]:
        """Those of the jobs that are going on that have to end, by their rungs."""
        found: list[Cut] = []
        for number, (epoch, values) in enumerate(self._values.items(), 1):
            kept = math.floor(len(values) * self.rule.keep + _ROUNDING)
            if not kept:
                continue
            # Sorting is stable: of equal ones the first to come is the best.
            ranked = sorted(values, key=lambda job_id: self._badness(values[job_id]))
            for rank, job_id in enumerate(ranked[kept:], kept + 1):
                if job_id in going_on and self._reached[job_id] == number:
                    found.append(Cut(job_id, epoch, values[job_id], rank, len(ranked), kept))
        return found

    def _badness(self, value: float) -> float:
        if math.isnan(value):
            return math.inf
        return -value if self.rule.mode == "max" else value
