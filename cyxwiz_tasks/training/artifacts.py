"""What a training leaves behind: metrics.jsonl while it runs, then model.safetensors, and manifest.json last.

Each file is written under a temporary name, synced and renamed; whoever sees a manifest sees whole files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors.torch import save_model
from torch import nn

from cyxwiz_tasks.training.context import TrainingContext
from cyxwiz_tasks.training.datasets import Dataset
from cyxwiz_tasks.training_job import TrainingJob

MODEL = "model.safetensors"
METRICS = "metrics.jsonl"
MANIFEST = "manifest.json"


class MetricsLog:
    """Sends each report to the context and to metrics.jsonl, one JSON object a line."""

    def __init__(self, ctx: TrainingContext) -> None:
        self._ctx = ctx
        self._path = ctx.artifacts / METRICS

    def __enter__(self) -> Self:
        # Buffered by line: what a killed job reported can still be read.
        self._handle = self._path.open("a", buffering=1, encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()

    def report(self, **values: Any) -> None:
        self._handle.write(json.dumps(values, allow_nan=False) + "\n")
        self._ctx.report(**values)


def write_artifacts(
    folder: Path, job: TrainingJob, dataset: Dataset, model: nn.Module, result: Mapping[str, Any]
) -> dict[str, str]:
    """Write weights and manifest; return the path of each file by its name without suffix."""
    # save_model stores tensors that share memory once; its bytes depend on the weights alone, so they hash stably.
    write_whole(folder / MODEL, lambda path: save_model(model, str(path)))
    files = {name: _describe(folder / name) for name in (MODEL, METRICS)}
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


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file, sync it, and give it the name `path`: never half a file under that name."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as handle:
        return {"size_bytes": path.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}
