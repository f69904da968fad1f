"""What the training needs from where it runs, and a context for a plain script that has no service at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
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


@dataclass
class LocalContext:
    """Runs the same loop as a plain script, without any service. Reports are collected, and passed to `on_report`."""

    device: str = "cpu"
    artifacts: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="cyxwiz-artifacts-")))
    cache: Path = field(default_factory=lambda: Path.home() / ".cache" / "cyxwiz")
    data_roots: tuple[Path, ...] = ()
    threads: int = 1
    should_stop: bool = False
    on_report: Callable[[dict[str, Any]], None] | None = None
    reports: list[dict[str, Any]] = field(default_factory=list)

    def report(self, **values: Any) -> None:
        self.reports.append(values)
        if self.on_report is not None:
            self.on_report(values)
