"""A data set out of files: where each part lies, which reader it needs, and errors that name the option to change."""

from __future__ import annotations

import json
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from cyxwiz_tasks.errors import CyxwizError, DataError
from cyxwiz_tasks.training.chunks import Chunks, PartName
from cyxwiz_tasks.training.locations import Location, locate
from cyxwiz_tasks.training.names import did_you_mean
from cyxwiz_tasks.training.normalised import Normalised, entry_for
from cyxwiz_tasks.training.readers import KEYED_READERS, read_array, read_pair
from cyxwiz_tasks.training.tables import read_csv, read_parquet

_TABLES = {".csv": read_csv, ".parquet": read_parquet}
_SINGLE_ARRAYS = (".npy", ".idx", "-ubyte")

#: What the libraries raise for a file that is damaged, or of another kind than its name says.
UNREADABLE = (
    *(OSError, ValueError, KeyError, EOFError, TypeError),
    *(zipfile.BadZipFile, zlib.error, struct.error, SafetensorError),
)

_OPTIONS_OF_ALL = ("test", "shape", "layout", "classes")
_OPTIONS = {
    ".csv": ("label", "columns", "delimiter", "header"),
    ".parquet": ("label", "columns"),
    ".txt": ("context", "vocabulary"),
    ".npy": ("targets", "test_targets", "context", "vocabulary"),
    ".idx": ("targets", "test_targets"),
    "-ubyte": ("targets", "test_targets"),
}
_KEYED_OPTIONS = ("inputs", "targets")


def open_files(uri: str, options: Mapping[str, Any], cache: Path, data_roots: tuple[Path, ...]) -> Normalised:
    """The normalised copy of the file at `uri`, and of the files that the options `test` and `targets` name."""
    places = {"train": locate(uri, data_roots)}
    suffix = places["train"].suffix
    check_options(options, (*_OPTIONS_OF_ALL, *_OPTIONS.get(suffix, _KEYED_OPTIONS)))
    if "test" in options:
        places["test"] = locate(str(options["test"]), data_roots, "dataset_options.test")
        if places["test"].suffix != suffix:
            raise DataError(f"dataset_options.test: it must be a {suffix} file like the dataset")
    labels = {}
    if suffix in _SINGLE_ARRAYS:
        for part, option in (("train", "targets"), ("test", "test_targets")):
            if option in options:
                labels[part] = locate(str(options[option]), data_roots, f"dataset_options.{option}")
    files = (*places.items(), *labels.items())
    # With the suffix: one content is read as rows or as text, by the name that it has.
    fingerprint = json.dumps([[part, place.suffix, place.fingerprint] for part, place in files])
    return entry_for(cache, fingerprint, options, lambda: _read_all(places, labels, options, cache))


def check_options(options: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Raise DataError for an option that this kind of data set does not have."""
    for option in options:
        if option not in known:
            guess = did_you_mean(option, known)
            raise DataError(
                f"dataset_options.{option}: this dataset has no such option{guess}; there are {', '.join(known)}"
            )


def _read_all(
    places: Mapping[str, Location], labels: Mapping[str, Location], options: Mapping[str, Any], cache: Path
) -> Chunks:
    with tempfile.TemporaryDirectory(prefix="download-", dir=cache) as scratch:
        for part, place in places.items():
            try:
                yield from _read(place, labels.get(part), "test" if part == "test" else "train", options, Path(scratch))
            except CyxwizError:
                raise
            except UNREADABLE as error:
                raise DataError(f"dataset: {place.uri} cannot be read as {place.suffix}: {error}") from error


def _read(
    place: Location, labels: Location | None, part: PartName, options: Mapping[str, Any], scratch: Path
) -> Chunks:
    path = place.fetch(scratch)
    if place.suffix in _TABLES:
        return _TABLES[place.suffix](path, part, options)
    if place.suffix in KEYED_READERS:
        return KEYED_READERS[place.suffix](path, part, options)
    targets = read_array(labels.fetch(scratch), labels.suffix) if labels is not None else None
    return read_pair(read_array(path, place.suffix), targets, part)
