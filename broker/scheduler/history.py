"""How long an attempt will take, by what others took."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import NamedTuple

from db.durations import Took

#: attempts of one name and owner, or of one owner, count as a kind of their own from so many on
_ENOUGH = 3


class Expected(NamedTuple):
    """Seconds from assignment to end, and what that is the median of."""

    seconds: float
    basis: str


class History:
    """What finished attempts took: those of the same name and owner, else of the same owner, else of everybody."""

    def __init__(self, rows: Iterable[Took]) -> None:
        self._all: list[float] = []
        self._of_owner: dict[str, list[float]] = {}
        self._of_name: dict[tuple[str, str], list[float]] = {}
        for name, owner, seconds in rows:
            self._all.append(seconds)
            self._of_owner.setdefault(owner, []).append(seconds)
            self._of_name.setdefault((name, owner), []).append(seconds)

    def __len__(self) -> int:
        return len(self._all)

    def expected(self, owner: str, name: str | None = None, elapsed_seconds: float = 0.0) -> Expected | None:
        """How long an attempt takes that has taken so much already: the median of those that took longer than that.

        None: nothing has finished, or nothing that took so long.
        """
        took, whose = self._alike(owner, name)
        longer = [seconds for seconds in took if seconds > elapsed_seconds]
        if not longer:
            return None
        basis = f"the median of the last {len(took)} attempts of {whose}"
        return Expected(median(longer), basis if len(took) > 1 else "the one attempt that has finished here")

    def _alike(self, owner: str, name: str | None) -> tuple[list[float], str]:
        if name is not None and len(took := self._of_name.get((name, owner), [])) >= _ENOUGH:
            return took, f'"{name}" of {owner}' if owner else f'"{name}"'
        if owner and len(took := self._of_owner.get(owner, [])) >= _ENOUGH:
            return took, owner
        return self._all, "everybody"
