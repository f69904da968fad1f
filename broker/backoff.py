"""Pauses between starts in a row: short at first, long for what keeps dying."""

from __future__ import annotations

#: pauses before the first, second, ... start in a row
PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
#: what ran so long starts anew with the shortest pause
STEADY_SECONDS = 60.0


class Backoff:
    def __init__(self) -> None:
        self._in_a_row = 0

    def pause_seconds(self, ran_seconds: float) -> float:
        """The pause before the next start of what ran for so long."""
        if ran_seconds > STEADY_SECONDS:
            self._in_a_row = 0
        pause = PAUSES_SECONDS[min(self._in_a_row, len(PAUSES_SECONDS) - 1)]
        self._in_a_row += 1
        return pause
