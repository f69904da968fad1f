"""What stands for a leader in a world: the product's own memory and duties, without its threads, servers and record.

Duties see the world's clock in the place of `time`. Of the record they need two things: how often a job gave its place
back, which the world counts, and a note of who was asked to leave for whom, by which the world's books hear of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from broker.scheduler import memory as memories
from broker.scheduler import stopping
from broker.scheduler.duties import consolidate, give_back, preempt, reserve
from broker.scheduler.duties.duty import Duty
from broker.scheduler.memory import Memory
from broker.scheduler.turn import Turn
from cyxwiz_tasks.protocol.controls import Stop
from cyxwiz_tasks.settings import Settings
from db import preemptions, quotas
from db.preemptions import Preemption

_TIMED = (memories, stopping, consolidate, give_back, preempt, reserve)
#: those of the leader that place, keep or clear places, in its order
_DUTIES: tuple[type[Duty], ...] = (preempt.Preempt, give_back.GiveBack, reserve.Reserve, consolidate.Consolidate)


class Told:
    """An outbox: what nodes were told of attempts that have to end, and nothing else is said."""

    def __init__(self) -> None:
        self.stops: list[tuple[str, Stop]] = []

    def control(self, node_id: str, stop: Stop) -> None:
        self.stops.append((node_id, stop))


class StandIn:
    """`end_turn` is called at the end of each turn, with what was told in it."""

    placed_all = True

    def __init__(self, settings: Settings, end_turn: Callable[[list[tuple[str, Stop]]], None]) -> None:
        self.settings, self.memory, self._end_turn = settings, Memory(settings.score_weights), end_turn
        leader: Any = self
        self.duties: list[Duty] = [duty(leader) for duty in _DUTIES]

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        told: Any = Told()
        no_record: Any = None
        yield Turn(no_record, 1, self.memory, told, self.settings)
        self._end_turn(told.stops)


class Clock:
    """What the product sees as `time`."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.monotonic = now


@contextmanager
def stands_in(
    now: Callable[[], float],
    note: Callable[[Sequence[Preemption]], None],
    times_preempted: Callable[[str], int],
) -> Iterator[None]:
    """While it lasts, the product's clock and record are the world's."""
    clock = Clock(now)
    with ExitStack() as stack:
        for module in _TIMED:
            stack.enter_context(patch.object(module, "time", clock))
        stack.enter_context(patch.object(preemptions, "note", lambda tx, epoch, noted: note(noted)))
        found = lambda tx, ids: {id: times_preempted(id) for id in ids if times_preempted(id)}  # noqa: E731
        stack.enter_context(patch.object(quotas, "times_preempted", found))
        yield
