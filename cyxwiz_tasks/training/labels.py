"""Class labels of any kind as numbers 0 .. classes-1, the same for all parts of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cyxwiz_tasks.errors import DataError
from cyxwiz_tasks.training.chunks import Array

#: More than this are rather ids or measurements than classes, and a model's last layer would not fit into memory.
_MOST_CLASSES = 100_000


class Labels(NamedTuple):
    """`names` are the labels as they were written, where they were text."""

    numbers: dict[str, Array]
    classes: int
    names: list[str] | None


def number_labels(parts: Mapping[str, Array], classes: int | None) -> Labels:
    """Number the labels of all parts, shape (rows,) or (rows, 1) each. Raises DataError for what is no class."""
    if classes is not None and (not isinstance(classes, int) or isinstance(classes, bool) or classes < 2):
        raise DataError(f"dataset_options.classes: must be a whole number of 2 or more, not {classes!r}")
    flat = {part: _texts(_one_per_row(values)) for part, values in parts.items()}
    everything = np.concatenate(list(flat.values()))
    if everything.dtype.kind in "USO":
        names, numbers = np.unique(everything.astype(str), return_inverse=True)
        lengths = np.cumsum([len(values) for values in flat.values()])[:-1]
        split = dict(zip(flat, np.split(numbers.astype(np.int64), lengths), strict=True))
        _check_range(0, len(names) - 1, classes)
        return Labels(split, classes or len(names), names.tolist())
    _check_whole(everything)
    lowest, highest = int(everything.min()), int(everything.max())
    _check_range(lowest, highest, classes)
    return Labels({part: values.astype(np.int64) for part, values in flat.items()}, classes or highest + 1, None)


def _one_per_row(values: Array) -> Array:
    if values.ndim == 2 and values.shape[1] == 1:
        return values[:, 0]
    if values.ndim != 1:
        raise DataError(f"dataset: targets of shape {values.shape[1:]} a row; give one class number per row")
    return values


def _texts(values: Array) -> Array:
    """HDF5 and NumPy give texts as bytes."""
    if values.dtype.kind == "S" or (values.dtype.kind == "O" and all(isinstance(value, bytes) for value in values)):
        return np.array([value.decode("utf-8", "replace") for value in values], dtype=np.str_)
    return values


def _check_whole(values: Array) -> None:
    if values.dtype.kind == "f":
        wrong = values[~np.isfinite(values) | (values != np.round(values))]
        if len(wrong):
            raise DataError(f"dataset: label {wrong[0]} is no class; labels must be whole numbers or text")
    elif values.dtype.kind not in "iub":
        raise DataError(f"dataset: labels must be whole numbers or text, not {values.dtype}")


def _check_range(lowest: int, highest: int, classes: int | None) -> None:
    if lowest < 0:
        raise DataError(f"dataset: class labels out of range: {lowest} occurs; number the classes from 0")
    if classes is not None and highest >= classes:
        raise DataError(
            f"dataset_options.classes: class labels out of range: {highest} occurs, "
            f"but {classes} classes are numbered 0 to {classes - 1}"
        )
    if classes is None and highest >= _MOST_CLASSES:
        raise DataError(
            f"dataset: label {highest} looks like no class number; say dataset_options.classes if it is one"
        )
    if max(highest + 1, classes or 0) < 2:
        raise DataError("dataset: all rows have the same label; a classifier needs two classes or more")
