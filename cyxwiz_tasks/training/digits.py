"""The 1,797 handwritten 8x8 digits that scikit-learn carries, read without importing it (that takes a second)."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from cyxwiz_tasks.errors import DataError
from cyxwiz_tasks.training.chunks import Chunk, Chunks


def read_digits() -> Chunks:
    """All rows as one chunk: inputs (1797, 8, 8) of 0 .. 16, targets (1797,)."""
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DataError("dataset: digits comes with scikit-learn, which this node lacks; pip install scikit-learn")
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if not path.exists():
        raise DataError(f"dataset: the installed scikit-learn has no {path.name}; pip install --force-reinstall it")
    with gzip.open(path, "rt") as handle:
        table = np.loadtxt(handle, delimiter=",", dtype=np.float32).astype(np.uint8)
    yield Chunk("train", table[:, :64].reshape(-1, 8, 8), table[:, 64])
