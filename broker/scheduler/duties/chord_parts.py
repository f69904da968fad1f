"""Parts of chords that ended longer ago than `Untold` looks back are counted again once Redis has lost what it knew.

The parts of a chord may be trainings of hours. So far as a state is kept at all (half its time, lest one that has
expired be taken for one that was lost), every job that ended is looked at; those are told again that are parts of a
chord of which the record has no body yet. Their own callbacks were called when they ended.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from broker.scheduler import telling
from broker.scheduler.duties import untold
from broker.scheduler.duties.duty import Duty
from broker.scheduler.telling import LastWord
from cyxwiz_tasks.result_backend import CHORD_SIZE
from db import outcomes
from db.outcomes import End
from db.reports import known_id

if TYPE_CHECKING:
    from broker.scheduler.leader import Leader

_BATCH = 1000
#: of one run; whatever is left, the next one looks at
_BUDGET_SECONDS = 0.05


class ChordParts(Duty):
    every_seconds: ClassVar[float] = 1.0

    def __init__(self, leader: Leader) -> None:
        super().__init__(leader)
        self._looks = False
        self._position: End | None = None

    def redis_is_back(self) -> None:
        self._looks, self._position = True, None

    def run_once(self) -> dict[str, int]:
        oldest_seconds = self.leader.settings.result_ttl_seconds / 2
        gives_up_at, counted = time.monotonic() + _BUDGET_SECONDS, 0
        while self._looks and time.monotonic() < gives_up_at:
            with self.leader.engine.connect() as tx:
                page = outcomes.members(tx, self._position, oldest_seconds, untold.OLDEST_SECONDS, _BATCH)
            in_groups = [end.job_id for end, in_group in page if in_group]
            job_ids = untold.unsaid(self.leader, in_groups) if in_groups else []
            for start in range(0, len(job_ids), untold.TOLD_AT_ONCE):
                counted += self._count(job_ids[start : start + untold.TOLD_AT_ONCE])
            self._looks = len(page) == _BATCH
            self._position = page[-1][0] if page else self._position
        return {"counted": counted}

    def _count(self, job_ids: list[str]) -> int:
        with self.leader.turn() as turn:
            turn.look_up(job_ids)
            words = [
                telling.awaited(turn.messages[outcome.job_id], untold.said_of(outcome))
                for outcome in outcomes.outcomes(turn.tx, job_ids)
                if outcome.job_id in turn.messages
            ]
            parts = [(_body_of(word), word) for word in words if word is not None]
            turn.look_up([body for body, _ in parts if body is not None])
            missing = [word for body, word in parts if body is not None and body not in turn.messages]
            turn.outbox.last_words.extend(
                replace(word, request=word.request | {"callbacks": None, "chain": None}) for word in missing
            )
        return len(missing)


def _body_of(word: LastWord) -> str | None:
    """The id of the body of the chord that a job is a part of, where its size is known."""
    chord = word.request["chord"]
    if not isinstance(chord, dict) or CHORD_SIZE not in chord:
        return None
    return known_id(str(chord.get("options", {}).get("task_id")))
