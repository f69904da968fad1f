"""What a training leaves behind: metrics.jsonl while it runs, then model.safetensors, and manifest.json last.

Each file is written under a temporary name, synced and renamed; whoever sees a manifest sees whole files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors.torch import save_model
from torch import nn

from cyxwiz_tasks.checkpoints.durable import write_whole
from cyxwiz_tasks.checkpoints.manifest import describe
from cyxwiz_tasks.training.context import TrainingContext
from cyxwiz_tasks.training.datasets import Dataset
from cyxwiz_tasks.training_job import TrainingJob

MODEL = "model.safetensors"
METRICS = "metrics.jsonl"
MANIFEST = "manifest.json"
#: A checkpoint carries the history so far; beyond this, every other report of a step is left out of it.
_HISTORY_CHARACTERS = 8 * 2**20


class MetricsLog:
    """Sends each report to the context and to metrics.jsonl, one JSON object a line."""

    def __init__(self, ctx: TrainingContext) -> None:
        self._ctx = ctx
        self._path = ctx.artifacts / METRICS

    def __enter__(self) -> Self:
        # Buffered by line: what a killed job reported can still be read.
        self._handle = self._path.open("w+", buffering=1, encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()

    def report(self, **values: Any) -> None:
        with suppress(OSError):  # a full disk: kept in memory and tried again with the next line
            self._handle.write(json.dumps(values, allow_nan=False) + "\n")
        self._ctx.report(**values)

    def history(self) -> str:
        """All lines so far; of a very long training, all epochs' and so many steps' that it stays a few MB."""
        self._handle.seek(0)
        lines = self._handle.readlines()
        while sum(map(len, lines)) > _HISTORY_CHARACTERS and (thinned := _every_other_step(lines)) != lines:
            lines = thinned
        return "".join(lines)

    def replace(self, history: str) -> None:
        """Begin with what an earlier attempt has reported."""
        self._handle.seek(0)
        self._handle.truncate()
        self._handle.write(history)


def write_artifacts(
    folder: Path, job: TrainingJob, dataset: Dataset, model: nn.Module, result: Mapping[str, Any]
) -> dict[str, str]:
    """Write weights and manifest; return the path of each file by its name without suffix."""
    # save_model stores tensors that share memory once; its bytes depend on the weights alone, so they hash stably.
    write_whole(folder / MODEL, lambda path: save_model(model, str(path)))
    files = {name: describe(folder / name).model_dump() for name in (MODEL, METRICS)}
    manifest = {
        "files": files,
        "job": job.model_dump(mode="json"),
        "input": {
            "shape": dataset.input_shape,
            "classes": dataset.classes,
            "labels": dataset.labels,
            "mean": dataset.mean,
            "std": dataset.std,
        },
        "torch": torch.__version__,
        "result": dict(result),
    }
    text = json.dumps(manifest, indent=2, allow_nan=False)
    write_whole(folder / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))
    return {Path(name).stem: str(folder / name) for name in (MODEL, METRICS, MANIFEST)}


def _every_other_step(lines: list[str]) -> list[str]:
    return [line for number, line in enumerate(lines) if number % 2 or '"val_loss"' in line]
