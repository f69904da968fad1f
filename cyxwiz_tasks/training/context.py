"""What the training needs from where it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class TrainingContext(Protocol):
    """The part of a job's context that the training uses."""

    @property
    def device(self) -> str:
        """ "cuda:0" or "cpu"."""

    @property
    def artifacts(self) -> Path:
        """The job's own folder for what it leaves behind; it exists."""

    @property
    def cache(self) -> Path:
        """A folder that all jobs of this node share, for data sets."""

    @property
    def data_roots(self) -> tuple[Path, ...]:
        """The folders below which local data sets may lie."""

    @property
    def threads(self) -> int:
        """How many CPU threads torch may use."""

    @property
    def should_stop(self) -> bool:
        """Whether a cancel or a preemption was asked for."""

    def report(self, **values: Any) -> None:
        """Publish progress: JSON scalars. Costs microseconds."""

    def checkpoint(self, *, step: int, **state: Any) -> bool:
        """Save where the training is; returns whether that was possible."""

    def restore(self) -> dict[str, Any] | None:
        """What was saved last, if anything was."""
