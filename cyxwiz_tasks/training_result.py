"""What a training leaves behind, as its submitter gets it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrainingResult:
    """The result of a TrainingJob."""

    #: test_accuracy, test_loss, samples_per_second, seconds, ...
    metrics: dict[str, Any]
    #: files on the node, by name: model, metrics, manifest
    artifacts: dict[str, Path]
    #: None after all epochs, else "early_stopping", "max_steps" or "stop_requested"
    stopped: str | None = None

    @classmethod
    def parse(cls, value: dict[str, Any]) -> TrainingResult:
        """Out of what the training returned."""
        artifacts = {name: Path(path) for name, path in (value.get("artifacts") or {}).items()}
        return cls(dict(value.get("metrics") or {}), artifacts, value.get("stopped"))
