"""Input rows in the one layout that models get: flat features, or images as channels, height, width."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cyxwiz_tasks.errors import DataError
from cyxwiz_tasks.training.chunks import Array

_CHANNELS = (1, 3, 4)


def as_rows(inputs: Array, options: Mapping[str, Any]) -> Array:
    """Rows as uint8 or float32, shape (rows, features) or (rows, channels, height, width).

    `shape` in the options gives flat rows a form ("1x28x28"); `layout` is "NCHW" or "NHWC" where it cannot be guessed.
    """
    rows = _numbers(inputs)
    if "shape" in options:
        rows = _reshaped(rows, parse_shape(options["shape"]))
    if rows.ndim in {1, 3}:
        rows = rows[:, None]
    elif rows.ndim == 4 and _channels_come_last(rows, options):
        rows = rows.transpose(0, 3, 1, 2)
    elif rows.ndim > 4:
        raise DataError(f"dataset: rows of shape {rows.shape[1:]} are neither features nor images")
    if rows.dtype != np.uint8 and not np.isfinite(rows).all():
        raise DataError(
            "dataset: there are empty, NaN or infinite values among the inputs; fill them or drop these rows"
        )
    return rows


def parse_shape(text: str | list[int]) -> tuple[int, ...]:
    """(3, 32, 32) from "3x32x32" or [3, 32, 32]."""
    try:
        shape = tuple(int(size) for size in (text.split("x") if isinstance(text, str) else text))
    except (TypeError, ValueError):
        shape = ()
    if not shape or min(shape) < 1:
        raise DataError(f"dataset_options.shape: {text!r} is no shape; write for example 3x32x32")
    return shape


class Moments:
    """Mean and standard deviation, per channel of images or per feature, summed up in one pass over the rows."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Array = np.zeros(())
        self._squares: Array = np.zeros(())

    def add(self, rows: Array) -> None:
        axes = (0, 2, 3) if rows.ndim == 4 else (0,)
        self._count += math.prod(rows.shape[axis] for axis in axes)
        self._sum = self._sum + rows.sum(axis=axes, dtype=np.float64)
        self._squares = self._squares + np.square(rows, dtype=np.float64).sum(axis=axes)

    def result(self) -> tuple[list[float], list[float]]:
        mean = self._sum / self._count
        deviation = np.sqrt(np.maximum(self._squares / self._count - mean**2, 0))
        # A feature that never changes would be divided by zero.
        return mean.tolist(), np.where(deviation > 1e-6, deviation, 1.0).tolist()


def _numbers(inputs: Array) -> Array:
    if inputs.dtype == np.uint8:
        return inputs
    if inputs.dtype == np.bool_:
        return inputs.astype(np.uint8)
    if np.issubdtype(inputs.dtype, np.integer) or np.issubdtype(inputs.dtype, np.floating):
        return inputs.astype(np.float32)
    raise DataError(f"dataset: inputs must be numbers, not {inputs.dtype}")


def _reshaped(rows: Array, shape: tuple[int, ...]) -> Array:
    if math.prod(rows.shape[1:]) != math.prod(shape):
        wanted = "x".join(map(str, shape))
        raise DataError(
            f"dataset_options.shape: {wanted} needs {math.prod(shape)} values a row, "
            f"the data has {math.prod(rows.shape[1:])} (shape {rows.shape[1:]})"
        )
    return rows.reshape(len(rows), *shape)


def _channels_come_last(rows: Array, options: Mapping[str, Any]) -> bool:
    layout = options.get("layout")
    if layout not in (None, "NCHW", "NHWC"):
        raise DataError(f"dataset_options.layout: must be NCHW or NHWC, not {layout!r}")
    if layout is None:
        return rows.shape[-1] in _CHANNELS and rows.shape[1] not in _CHANNELS
    return bool(layout == "NHWC")
