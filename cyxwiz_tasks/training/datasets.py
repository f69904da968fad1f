"""A TrainingJob's data set: found, normalised once per node, split, and ready to be served in batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cyxwiz_tasks.errors import DataError
from cyxwiz_tasks.training.chunks import Array
from cyxwiz_tasks.training.normalised import Normalised
from cyxwiz_tasks.training.sources import open_source
from cyxwiz_tasks.training_job import TrainingJob

#: Tokens in one sample of text, unless dataset_options says `context`.
_CONTEXT = 64


@dataclass(frozen=True)
class Part:
    """Rows of a pair of arrays: inputs (all rows, ...) and targets (all rows,), or (all rows, context) for text."""

    inputs: Array
    targets: Array
    rows: Array

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Dataset:
    """`validation` and `test` are empty parts where nothing is held out.

    `test_is_validation` says that there was no test part of its own, so the final result is on the validation rows.
    `mean` and `std` are per channel or per feature; text has none.
    """

    train: Part
    validation: Part
    test: Part
    test_is_validation: bool
    classes: int
    input_shape: tuple[int, ...]
    is_text: bool
    mean: list[float]
    std: list[float]
    labels: list[str] | None


def load_dataset(job: TrainingJob, cache: Path, data_roots: tuple[Path, ...]) -> Dataset:
    """Load, or take from the cache, and split. Raises DataError with the field and what to do."""
    entry = open_source(job.dataset, job.dataset_options, cache, data_roots)
    is_text = entry.meta["kind"] == "tokens"
    pairs = {part: _pair(entry, part, is_text, job.dataset_options) for part in ("train", "test")}
    inputs, targets = pairs["train"]
    if not len(inputs):
        raise DataError("dataset: it is shorter than one sample; lower dataset_options.context")
    kept, held_out = split_rows(len(inputs), job.validation_split, job.seed, in_order=is_text)
    if not len(kept):
        raise DataError(f"validation_split: {job.validation_split} of {len(inputs)} rows leaves none to train on")
    validation = Part(inputs, targets, held_out)
    has_test = len(pairs["test"][0]) > 0
    return Dataset(
        train=Part(inputs, targets, kept),
        validation=validation,
        test=Part(*pairs["test"], np.arange(len(pairs["test"][0]))) if has_test else validation,
        test_is_validation=not has_test,
        classes=entry.meta["classes"],
        input_shape=inputs.shape[1:],
        is_text=is_text,
        mean=entry.meta.get("mean", []),
        std=entry.meta.get("std", []),
        labels=entry.meta.get("labels"),
    )


def split_rows(rows: int, share: float, seed: int, *, in_order: bool) -> tuple[Array, Array]:
    """Row numbers to train on and to hold out: a pure function of its arguments.

    Text is held out `in_order`, from its end: neighbouring pieces of one text resemble each other too much to judge by.
    """
    held_out = min(rows, max(1, round(rows * share))) if share > 0 else 0
    numbers = np.arange(rows) if in_order else np.random.default_rng([seed, 1]).permutation(rows)
    return numbers[: rows - held_out], numbers[rows - held_out :]


def epoch_order(rows: Array, seed: int, epoch: int) -> Array:
    """The rows in the order of this epoch. A pure function, so a position is all that a resume needs."""
    return np.random.default_rng([seed, 2, epoch]).permutation(rows)


def _pair(entry: Normalised, part: str, is_text: bool, options: Mapping[str, Any]) -> tuple[Array, Array]:
    inputs, targets = entry.array(part, "inputs"), entry.array(part, "targets")
    if inputs is None:
        return np.empty((0,)), np.empty((0,))
    if not is_text:
        assert targets is not None
        return inputs, targets
    context = options.get("context", _CONTEXT)
    if not isinstance(context, int) or context < 1:
        raise DataError(f"dataset_options.context: must be a whole number of 1 or more, not {context!r}")
    samples = (len(inputs) - 1) // context
    end = samples * context
    return inputs[:end].reshape(samples, context), inputs[1 : end + 1].reshape(samples, context)
