"""The one form in which every source hands over its rows."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
PartName = Literal["train", "test"]


class Chunk(NamedTuple):
    """Some rows of one part. Text is a chunk without targets: its inputs are tokens of shape (tokens,)."""

    part: PartName
    inputs: Array
    targets: Array | None


#: A generator, so that whoever stops reading can close it, and with it the files and folders that it holds open.
Chunks: TypeAlias = Generator[Chunk, None, None]

#: A piece of a file that passes through memory. Its float64 statistics take up to eight times as much.
_CHUNK_BYTES = 8 * 2**20


def row_slices(rows: int, row_bytes: int) -> Iterator[slice]:
    """Consecutive slices of a few MB, so that a file larger than memory passes through in pieces."""
    size = max(1, _CHUNK_BYTES // max(1, row_bytes))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))
