"""One row of the bench's table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """A figure, what it is held against in the same run, and whether it holds.

    `ratio` is value over yardstick where there is one. `lower_is_better` says on which side of `target` the judged
    figure (the ratio, or the value where `yardstick` is None) must lie.
    """

    name: str
    value: float
    unit: str
    target: float
    yardstick: float | None = None
    lower_is_better: bool = False
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return None if self.yardstick is None else self.value / self.yardstick

    @property
    def holds(self) -> bool:
        judged = self.value if self.ratio is None else self.ratio
        return judged <= self.target if self.lower_is_better else judged >= self.target

    def as_json(self) -> dict[str, Any]:
        fields = asdict(self)
        return fields | {"ratio": self.ratio, "holds": self.holds}
