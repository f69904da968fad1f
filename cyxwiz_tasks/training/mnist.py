"""MNIST and Fashion-MNIST: downloaded once from public mirrors, or read from a folder of IDX files."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cyxwiz_tasks.errors import CyxwizError, DataError, DataRefused
from cyxwiz_tasks.training.chunks import Chunks
from cyxwiz_tasks.training.files import UNREADABLE, check_options
from cyxwiz_tasks.training.http_download import download
from cyxwiz_tasks.training.locations import locate
from cyxwiz_tasks.training.normalised import Normalised, entry_for
from cyxwiz_tasks.training.readers import read_array, read_pair

#: Tried in this order.
MIRRORS = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion-mnist": (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
}

#: MD5 of each file, packed or plain: the publishers give no other. It guards against damage and a second preimage.
CHECKSUMS: dict[str, dict[str, tuple[str, ...]]] = {
    "mnist": {
        "train-images-idx3-ubyte": ("6bbc9ace898e44ae57da46a324031adb", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        "train-labels-idx1-ubyte": ("a25bea736e30d166cdddb491f175f624", "d53e105ee54ea40749a09fcbcd1e9432"),
        "t10k-images-idx3-ubyte": ("2646ac647ad5339dbf082846283269ea", "9fb629c4189551a2d022fa330f9573f3"),
        "t10k-labels-idx1-ubyte": ("27ae3e4e09519cfbb04c329615203637", "ec29112dd5afa0611ce80d1b7f02629c"),
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d",),
        "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe",),
        "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79",),
        "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310",),
    },
}
_PARTS: tuple[tuple[Literal["train", "test"], str], ...] = (("train", "train"), ("test", "t10k"))
_CLASSES = 10


def open_mnist(name: str, options: Mapping[str, Any], cache: Path, data_roots: tuple[Path, ...]) -> Normalised:
    """The normalised copy of "mnist" or "fashion-mnist". Option `folder`: a local folder of the four IDX files."""
    check_options(options, ("folder",))
    if "folder" not in options:
        return entry_for(cache, name, {"classes": _CLASSES}, lambda: _download_all(name, cache))
    files = {file: _in_folder(str(options["folder"]), file, data_roots) for file in CHECKSUMS[name]}
    fingerprint = "|".join(location.fingerprint for location in files.values())

    def chunks() -> Chunks:
        with tempfile.TemporaryDirectory(prefix="unpacked-", dir=cache) as scratch:
            try:
                yield from _chunks({file: location.fetch(Path(scratch)) for file, location in files.items()})
            except CyxwizError:
                raise
            except UNREADABLE as error:
                raise DataError(f"dataset_options.folder: {options['folder']} cannot be read: {error}") from error

    return entry_for(cache, fingerprint, {"classes": _CLASSES}, chunks)


def _in_folder(folder: str, file: str, data_roots: tuple[Path, ...]) -> Any:
    """The file, plain or packed."""
    try:
        return locate(f"{folder}/{file}", data_roots, "dataset_options.folder")
    except DataRefused:
        raise
    except DataError:
        return locate(f"{folder}/{file}.gz", data_roots, "dataset_options.folder")


def _download_all(name: str, cache: Path) -> Chunks:
    with tempfile.TemporaryDirectory(prefix="download-", dir=cache) as scratch:
        paths = {file: Path(scratch) / file for file in CHECKSUMS[name]}
        for file, path in paths.items():
            _from_a_mirror(name, file, path)
        yield from _chunks(paths)


def _from_a_mirror(name: str, file: str, path: Path) -> None:
    failures = []
    for mirror in MIRRORS[name]:
        packed = path.with_name(f"{file}.gz")
        try:
            download(f"{mirror}{file}.gz", packed)
            with gzip.open(packed) as source, path.open("wb") as handle:
                shutil.copyfileobj(source, handle)
        except UNREADABLE as error:
            failures.append(str(error))
            continue
        if {_md5(packed), _md5(path)} & set(CHECKSUMS[name][file]):
            return
        failures.append(f"dataset: {mirror}{file}.gz has a wrong checksum")
    raise DataError(
        f"dataset: {name} cannot be downloaded ({'; '.join(failures)}). Without internet, put its four IDX files into "
        'a data folder of the node and write dataset_options={"folder": "that folder"}'
    )


def _chunks(paths: Mapping[str, Path]) -> Chunks:
    for part, prefix in _PARTS:
        inputs = read_array(paths[f"{prefix}-images-idx3-ubyte"], "-ubyte")
        targets = read_array(paths[f"{prefix}-labels-idx1-ubyte"], "-ubyte")
        yield from read_pair(inputs, targets, part)


def _md5(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
