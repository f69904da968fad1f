"""Simulated time: a queue of events, in the order of their moments, and one source of chance."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any


class Unsimulated(BaseException):
    """The product did something that the simulation has no model of. Nothing in the product swallows it."""


class Broken(AssertionError):
    """What must always hold does not."""


class World:
    """`now` is seconds since the beginning."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.seed, self.random, self.now = seed, random.Random(seed), 0.0
        self._queue: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._number = itertools.count()
        self._trace = trace
        self.broken: list[str] = []

    def after(self, seconds: float, action: Callable[..., Any], *arguments: Any) -> None:
        """Do something later."""
        heapq.heappush(self._queue, (self.now + seconds, next(self._number), action, arguments))

    def run_until(self, moment: float) -> None:
        """Let everything happen that is due by then. May be called within an event: then time goes on around it."""
        while self._queue and self._queue[0][0] <= moment:
            at, _, action, arguments = heapq.heappop(self._queue)
            self.now = max(self.now, at)
            action(*arguments)
        self.now = max(self.now, moment)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.random.random()

    def happens(self, probability: float) -> bool:
        return self.random.random() < probability

    def say(self, who: str, what: str, **facts: Any) -> None:
        """One line of the trace."""
        if self._trace is not None:
            told = " ".join(f"{name}={value}" for name, value in facts.items())
            self._trace(f"{self.now:9.3f} {who:<12} {what} {told}")

    def check(self, holds: bool, complaint: str) -> None:
        """Note that something does not hold that must."""
        if not holds:
            self.say("CHECK", complaint)
            self.broken.append(f"at {self.now:.3f} s: {complaint}")
