"""How much of the queue and of the cluster one owner may have at a time, over all projects.

The limit on running jobs delays, those on waiting jobs and on submissions a minute refuse. Pure: time is an argument.
"""

from __future__ import annotations

from shlex import quote
from typing import NamedTuple

from cyxwiz_tasks.errors import LimitReached


class OwnerLimits(NamedTuple):
    """None: as many as he likes."""

    #: his part of what owners share, in proportion
    weight: float = 1.0
    running: int | None = None
    waiting: int | None = None
    #: submissions; so many may come at once
    per_minute: float | None = None


class Limits:
    def __init__(self, usual: OwnerLimits | None = None) -> None:
        """`usual`: of owners about whom nothing else was said."""
        self.usual = usual or OwnerLimits()
        self._own: dict[str, OwnerLimits] = {}
        #: by owner: submissions that he may still make at once, as of this moment
        self._left: dict[str, tuple[float, float]] = {}

    def of(self, owner: str) -> OwnerLimits:
        return self._own.get(owner, self.usual)

    def set(self, owner: str, limits: OwnerLimits) -> None:
        self._own[owner] = limits

    def submissions_left(self, owner: str, now: float) -> float:
        """How many more he may make now, infinite without a limit. `now` is of a clock that does not go back."""
        per_minute = self.of(owner).per_minute
        if per_minute is None:
            return float("inf")
        left, at = self._left.get(owner, (per_minute, now))
        return min(max(1.0, per_minute), left + (now - at) * per_minute / 60)

    def count_submissions(self, owner: str, count: int, now: float) -> None:
        if self.of(owner).per_minute is not None:
            self._left[owner] = self.submissions_left(owner, now) - count, now


def too_many_waiting(owner: str, limit: int) -> LimitReached:
    name, jobs = quote(owner), "job" if limit == 1 else "jobs"
    return LimitReached(
        f"waiting: {owner or 'this owner'} may have {limit} {jobs} waiting, and has. Submit again when some have "
        f"started: `cyxwiz jobs --owner {name} --state pending` lists them, and `cyxwiz limit {name} --waiting N` "
        "allows more"
    )


def too_many_submissions(owner: str, per_minute: float) -> LimitReached:
    jobs = "job" if per_minute == 1 else "jobs"
    return LimitReached(
        f"per_minute: {owner or 'this owner'} may submit {per_minute:g} {jobs} a minute. Submit again in a minute; "
        f"`cyxwiz limit {quote(owner)} --per-minute N` allows more"
    )
