"""Readers of array files, by suffix. Each takes a file in pieces, and names the keys there are when one is wrong."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from cyxwiz_tasks.errors import DataError, DataRefused
from cyxwiz_tasks.training.chunks import Array, Chunk, Chunks, PartName, row_slices
from cyxwiz_tasks.training.names import did_you_mean

#: The names under which inputs and targets are looked for, unless the options name them.
_INPUT_KEYS = ("x_train", "inputs", "x", "X", "images", "data")
_TARGET_KEYS = ("y_train", "targets", "y", "Y", "labels", "label")
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

#: An array of a file, of which slices can be taken: NumPy's, HDF5's or safetensors'.
Sliceable = Any


def read_text(path: Path, part: PartName, _options: Mapping[str, Any]) -> Chunks:
    """A text as its bytes: a vocabulary of 256 that fits every language."""
    text = np.fromfile(path, dtype=np.uint8)
    if len(text):
        yield Chunk(part, text, None)


def read_array(path: Path, suffix: str) -> Array:
    """The one array of an NPY or IDX file, mapped."""
    if suffix == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]  # NumPy says Any
    return _read_idx(path)


def read_pair(inputs: Array, targets: Array | None, part: PartName) -> Chunks:
    """Chunks of two arrays. Whole numbers in one dimension without targets are tokens of a text."""
    if targets is None:
        if inputs.ndim != 1 or inputs.dtype.kind not in "iu":
            hint = 'name the file of its labels: dataset_options={"targets": "labels.npy"}'
            raise DataError(f"dataset: one array of shape {inputs.shape} has no labels; {hint}")
        yield from (Chunk(part, inputs[piece], None) for piece in row_slices(len(inputs), inputs.itemsize))
        return
    if len(inputs) != len(targets):
        raise DataError(f"dataset: {len(inputs)} inputs but {len(targets)} targets; give one per row")
    for piece in row_slices(len(inputs), inputs[:1].nbytes):
        yield Chunk(part, inputs[piece], np.asarray(targets[piece]))


def read_npz(path: Path, part: PartName, options: Mapping[str, Any]) -> Chunks:
    with np.load(path, allow_pickle=False) as file:
        yield from _keyed(file.__getitem__, list(file.keys()), part, options)


def read_hdf5(path: Path, part: PartName, options: Mapping[str, Any]) -> Chunks:
    try:
        import h5py
    except ImportError:
        raise DataError("dataset: HDF5 files need h5py, which this node lacks; pip install h5py") from None

    def own_array(key: str) -> Sliceable:
        # HDF5 can point into other files, which would lead out of the data folders.
        link = file.get(key, getlink=True)
        array = None if isinstance(link, h5py.ExternalLink) else file[key]
        if not isinstance(array, h5py.Dataset) or array.external or array.is_virtual:
            raise DataRefused(f"dataset: {key!r} of this HDF5 file is no array, or one that lies in another file")
        return array

    with h5py.File(path, "r") as file:
        yield from _keyed(own_array, list(file.keys()), part, options)


def read_safetensors(path: Path, part: PartName, options: Mapping[str, Any]) -> Chunks:
    from safetensors import safe_open

    opened: AbstractContextManager[Any] = safe_open(path, framework="np")
    with opened as file:
        yield from _keyed(file.get_slice, list(file.keys()), part, options)


KEYED_READERS: dict[str, Callable[[Path, PartName, Mapping[str, Any]], Chunks]] = {
    ".npz": read_npz,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
    ".safetensors": read_safetensors,
    ".txt": read_text,
}


def _keyed(array: Callable[[str], Sliceable], keys: list[str], part: PartName, options: Mapping[str, Any]) -> Chunks:
    inputs, targets = _key(keys, "inputs", _INPUT_KEYS, options), _key(keys, "targets", _TARGET_KEYS, options)
    yield from _slices(array(inputs), array(targets), part)
    if part == "train" and "test" not in options and {"x_test", "y_test"} <= set(keys):
        yield from _slices(array("x_test"), array("y_test"), "test")


def _key(keys: list[str], option: str, defaults: tuple[str, ...], options: Mapping[str, Any]) -> str:
    wanted = options.get(option)
    found = next((key for key in ((wanted,) if wanted is not None else defaults) if key in keys), None)
    if found is None:
        what = (
            f"no array {wanted!r}{did_you_mean(str(wanted), keys)}" if wanted is not None else f"no array for {option}"
        )
        raise DataError(f"dataset_options.{option}: the file has {what}; it holds {', '.join(keys) or 'nothing'}")
    return found


def _slices(inputs: Sliceable, targets: Sliceable, part: PartName) -> Chunks:
    lengths = [_length(inputs), _length(targets)]
    if lengths[0] != lengths[1]:
        raise DataError(f"dataset: {lengths[0]} inputs but {lengths[1]} targets; give one per row")
    if lengths[0] == 0:
        return
    for piece in row_slices(lengths[0], np.asarray(inputs[:1]).nbytes):
        yield Chunk(part, np.asarray(inputs[piece]), np.asarray(targets[piece]))


def _length(array: Sliceable) -> int:
    shape = array.get_shape() if hasattr(array, "get_shape") else array.shape
    if not shape:
        raise DataError("dataset: a single number is no column of rows; name arrays with one entry per row")
    return int(shape[0])


def _read_idx(path: Path) -> Array:
    with path.open("rb") as handle:
        header = handle.read(4)
        kind = _IDX_TYPES.get(header[2]) if len(header) == 4 and header[:2] == b"\0\0" else None
        if kind is None or header[3] == 0:
            raise DataError(f"dataset: {path.name} is no IDX file; its first bytes are {header.hex()}")
        shape = struct.unpack(f">{header[3]}I", handle.read(4 * header[3]))
    return np.memmap(path, dtype=kind, mode="r", offset=4 + 4 * header[3], shape=shape)
