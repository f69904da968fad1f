"""An NPY file that grows by rows, so that a data set larger than memory can be written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cyxwiz_tasks.errors import DataError
from cyxwiz_tasks.training.chunks import Array


class GrowingNpy:
    """Rows of one dtype and shape. NumPy pads the header for a first dimension that grows, so it is written twice."""

    def __init__(self, path: Path, dtype: npt.DTypeLike, row_shape: tuple[int, ...]) -> None:
        self.rows = 0
        self.dtype = np.dtype(dtype)
        self.row_shape = row_shape
        self._handle = path.open("wb")
        self._write_header()

    def append(self, rows: Array) -> None:
        """Add rows. Raises DataError when their shape differs from the first ones'."""
        if rows.shape[1:] != self.row_shape:
            raise DataError(
                f"dataset: shape {rows.shape[1:]} of row {self.rows} differs from the first's {self.row_shape}"
            )
        self._handle.write(np.ascontiguousarray(rows, dtype=self.dtype).data)
        self.rows += len(rows)

    def close(self) -> None:
        """Write the final header and sync."""
        self._handle.seek(0)
        self._write_header()
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()

    def _write_header(self) -> None:
        np.lib.format.write_array_header_1_0(
            self._handle,
            {
                "descr": np.lib.format.dtype_to_descr(self.dtype),
                "fortran_order": False,
                "shape": (self.rows, *self.row_shape),
            },
        )
