"""`SuccessiveHalving`: which jobs of an array end early, because others do better after as many epochs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

from cyxwiz_tasks.errors import InvalidJob

_RUNGS = 100
_EXAMPLE = 'Write SuccessiveHalving("val_accuracy", "max", rung_epochs=(1, 3, 9), keep=1/3)'


@dataclass(frozen=True)
class SuccessiveHalving:
    """After each of `rung_epochs`, only the best `keep` by `metric` of those that came so far go on.

    Successive halving (Jamieson and Talwalkar, 2016) without waiting for everybody, as in ASHA (Li et al., 2020), whose
    jobs are stopped instead of promoted. A job reports the metric together with `epoch`; a TrainingJob does so by
    itself. Raises InvalidJob.
    """

    metric: str
    mode: Literal["max", "min"] = "max"
    rung_epochs: tuple[int, ...] = (1, 3, 9)
    keep: float = 1 / 3

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str) or not 0 < len(self.metric) <= 200:
            raise InvalidJob("early_stopping.metric", f"{self.metric!r} is no name of a metric", _EXAMPLE)
        if self.mode not in ("max", "min"):
            raise InvalidJob("early_stopping.mode", f"{self.mode!r} is neither 'max' nor 'min'", _EXAMPLE)
        rungs = self.rung_epochs
        if not isinstance(rungs, list | tuple) or not 0 < len(rungs) <= _RUNGS or not all(map(_is_epoch, rungs)):
            raise InvalidJob("early_stopping.rung_epochs", f"{rungs!r} are no numbers of epochs", _EXAMPLE)
        if sorted(set(rungs)) != list(rungs):
            raise InvalidJob("early_stopping.rung_epochs", f"{rungs!r} do not rise", _EXAMPLE)
        object.__setattr__(self, "rung_epochs", tuple(rungs))
        if not isinstance(self.keep, int | float) or not 0 < self.keep < 1:
            raise InvalidJob("early_stopping.keep", f"{self.keep!r} is no share between 0 and 1", _EXAMPLE)

    @classmethod
    def parse(cls, fields: Any) -> Self:
        """Out of a dict of its fields. Raises InvalidJob that names the one that is missing or unknown."""
        if not isinstance(fields, dict) or "metric" not in fields:
            raise InvalidJob("early_stopping", "names no metric", 'Write {"metric": "val_accuracy", "mode": "max"}')
        unknown = fields.keys() - cls.__dataclass_fields__.keys()
        if unknown:
            raise InvalidJob(f"early_stopping.{min(unknown)}", "is no field of it", _EXAMPLE)
        return cls(**fields)


def _is_epoch(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
