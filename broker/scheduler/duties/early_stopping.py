"""Jobs of an array that fall behind the others end, as its rule says, by what the record has of their metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from broker.scheduler.commands import cancel
from broker.scheduler.duties.duty import Duty
from broker.scheduler.halving import Cut, Rungs
from broker.scheduler.live import Live
from db import metrics

if TYPE_CHECKING:
    from broker.scheduler.leader import Leader

#: rows that are read at once, and how long one run reads those of one array
_BATCH = 10_000
_BUDGET_SECONDS = 0.05


@dataclass
class _Read:
    """What was read of an array so far, up to the row `after`."""

    rungs: Rungs
    after: int = 0


class EarlyStopping(Duty):
    every_seconds: ClassVar[float] = 1.0

    def __init__(self, leader: Leader) -> None:
        super().__init__(leader)
        self._read: dict[str, _Read] = {}

    def run_once(self) -> dict[str, int]:
        memory = self.leader.memory
        rules = memory.arrays.rules()
        self._read = {id: read for id, read in self._read.items() if id in rules}
        cuts: list[tuple[Cut, str]] = []
        for array_id, (rule, members) in rules.items():
            read = self._read.setdefault(array_id, _Read(Rungs(rule)))
            # By a part of the reports, who has come to the next rung is not known yet.
            if self._read_on(array_id, read):
                cuts += [(cut, rule.metric) for cut in read.rungs.cuts(members)]
        # One that was asked to end is not asked again: whoever does not hear it is told by `reconcile`.
        cuts = [(cut, metric) for cut, metric in cuts if not _is_ending(memory.live.get(cut.job_id))]
        if not cuts:
            return {}
        with self.leader.turn() as turn:
            for cut, metric in cuts:
                cancel(turn, cut.job_id, _message(cut, metric))
        return {"stopped": len(cuts)}

    def _read_on(self, array_id: str, read: _Read) -> bool:
        """Read what was reported since. False: there is more, such as all that was before this leader."""
        gives_up_at = time.monotonic() + _BUDGET_SECONDS
        while True:
            with self.leader.engine.connect() as tx:
                rows = metrics.told_in_array(tx, array_id, read.rungs.rule.metric, read.after, _BATCH)
            self._take(rows, read)
            if len(rows) < _BATCH:
                return True
            if time.monotonic() >= gives_up_at:
                return False

    @staticmethod
    def _take(rows: list[metrics.Told], read: _Read) -> None:
        for row in rows:
            read.after = row.seq
            try:
                value = None if row.value is None else float(row.value)
                read.rungs.tell(row.job_id, float(row.epoch), value)
            except ValueError:
                continue  # a text, or a truth value


def _is_ending(live: Live | None) -> bool:
    return live is not None and live.must_end


def _message(cut: Cut, metric: str) -> str:
    return (
        f"stopped early: rank {cut.rank} of {cut.of} by {metric} ({cut.value:.6g}) after epoch {cut.epoch}, "
        f"of which the best {cut.kept} go on"
    )
