"""Readers of tables, CSV and Parquet, a batch of rows at a time through Arrow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cyxwiz_tasks.errors import DataError
from cyxwiz_tasks.training.chunks import Array, Chunk, Chunks, PartName
from cyxwiz_tasks.training.names import did_you_mean

#: The columns that are taken for the label, unless the options name one.
_LABELS = ("label", "target", "class", "y", "species")


def read_csv(path: Path, part: PartName, options: Mapping[str, Any]) -> Chunks:
    """Rows of a CSV file. Options: `label`, `columns`, `delimiter`, and `header`: false for columns f0, f1, ..."""
    _need_arrow("CSV")
    from pyarrow import csv

    reader = csv.open_csv(
        path,
        read_options=csv.ReadOptions(autogenerate_column_names=not options.get("header", True), use_threads=False),
        parse_options=csv.ParseOptions(delimiter=str(options.get("delimiter", ","))),
    )
    return _rows(reader, list(reader.schema.names), part, options)


def read_parquet(path: Path, part: PartName, options: Mapping[str, Any]) -> Chunks:
    """Rows of a Parquet file. Options: `label`, `columns`."""
    _need_arrow("Parquet")
    from pyarrow import parquet

    with parquet.ParquetFile(path, memory_map=True) as file:
        names = list(file.schema_arrow.names)
        yield from _rows(file.iter_batches(batch_size=8192, use_threads=False), names, part, options)


def _rows(batches: Iterable[Any], names: list[str], part: PartName, options: Mapping[str, Any]) -> Chunks:
    label, columns = _choose_columns(names, options)
    for batch in batches:
        inputs = np.column_stack([_feature(batch.column(name), name) for name in columns])
        yield Chunk(part, inputs, _label(batch.column(label), label))


def _choose_columns(names: list[str], options: Mapping[str, Any]) -> tuple[str, list[str]]:
    listed = ", ".join(names[:50])
    label = options.get("label") or next((name for name in _LABELS if name in names), None)
    if label is None:
        raise DataError(f"dataset_options.label: say which column holds the label; there are {listed}")
    if label not in names:
        guess = did_you_mean(str(label), names)
        raise DataError(f"dataset_options.label: there is no column {label!r}{guess}; there are {listed}")
    columns = options.get("columns") or [name for name in names if name != label]
    for name in columns:
        if name not in names:
            guess = did_you_mean(str(name), names)
            raise DataError(f"dataset_options.columns: there is no column {name!r}{guess}; there are {listed}")
    if not columns:
        raise DataError(f"dataset_options.columns: beside the label {label!r} the table has no column to learn from")
    return label, list(columns)


def _feature(column: Any, name: str) -> Array:
    import pyarrow

    if not (pyarrow.types.is_integer(column.type) or pyarrow.types.is_floating(column.type)):
        if not pyarrow.types.is_boolean(column.type):
            hint = 'leave it out: dataset_options={"columns": [...]}'
            raise DataError(f"dataset_options.columns: column {name!r} holds {column.type}, not numbers; {hint}")
        column = column.cast(pyarrow.uint8())
    if column.null_count:
        raise DataError(f"dataset_options.columns: column {name!r} has empty cells; fill them or leave the column out")
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _label(column: Any, name: str) -> Array:
    if column.null_count:
        raise DataError(f"dataset_options.label: column {name!r} has empty cells; drop these rows")
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _need_arrow(what: str) -> None:
    try:
        import pyarrow  # noqa: F401  # its own message does not say what to install
    except ImportError:
        raise DataError(f"dataset: {what} files need pyarrow, which this node lacks; pip install pyarrow") from None
