"""Where a data file lies, confined: local files below the node's data folders, remote ones by a few known schemes."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec

from cyxwiz_tasks.errors import DataError, DataRefused
from cyxwiz_tasks.training.http_download import download, version_of
from cyxwiz_tasks.training.names import SUFFIXES, check_dataset, suffix_of

#: The packages that fsspec needs for a scheme, to say what to install.
_DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}


@dataclass(frozen=True)
class Location:
    """A file that was found. `fetch` takes a scratch folder and returns a local path to the plain content."""

    uri: str
    suffix: str
    fingerprint: str
    fetch: Callable[[Path], Path]


def locate(uri: str, data_roots: tuple[Path, ...], field: str = "dataset") -> Location:
    """Find a file. Raises DataRefused where jobs may not read, DataError where there is nothing."""
    try:
        check_dataset(uri)
    except ValueError as error:
        raise DataError(f"{field}: {error}") from None
    suffix = suffix_of(urlsplit(uri).path if "://" in uri else uri)
    if suffix is None:
        raise DataError(f"{field}: {uri!r} is no file; its name must end in one of {', '.join(SUFFIXES)}")
    scheme = urlsplit(uri).scheme if "://" in uri else "file"
    if scheme == "file":
        path = _local_file(uri, data_roots, field)
        return Location(uri, suffix, _sha256(path), lambda scratch: _plain(path, scratch))
    if scheme in ("http", "https"):
        return Location(
            uri,
            suffix,
            f"{uri}|{version_of(uri)}",
            lambda scratch: _downloaded(uri, scratch, lambda to: download(uri, to)),
        )
    return _object_store(uri, suffix, scheme, field)


def _local_file(uri: str, data_roots: tuple[Path, ...], field: str) -> Path:
    address = urlsplit(uri)
    if uri.startswith("file://") and address.netloc not in ("", "localhost"):
        raise DataError(f"{field}: {uri!r} names a host; write file:///folder/file with three slashes")
    named = Path(unquote(address.path) if uri.startswith("file://") else uri)
    roots = [root.resolve() for root in data_roots]
    # A relative path is tried below each folder. Links are resolved before the comparison, or one could lead out.
    candidates = [(root / named).resolve() for root in roots]
    allowed = [path for path in candidates if any(path.is_relative_to(root) for root in roots)]
    if not allowed:
        folders = ", ".join(map(str, roots)) or "none on this node; its owner names them when the worker starts"
        raise DataRefused(f"{field}: {uri!r} lies outside the folders that jobs may read ({folders})")
    found = next((path for path in allowed if path.is_file()), None)
    if found is None:
        raise DataError(
            f"{field}: there is no file {allowed[0]} on this node; put it there, or name one that all nodes reach"
        )
    return found


def _object_store(uri: str, suffix: str, scheme: str, field: str) -> Location:
    try:
        store, path = fsspec.core.url_to_fs(uri)
        version = store.ukey(path)
    except ImportError:
        package = _DRIVERS.get(scheme, scheme)
        raise DataError(f"{field}: {scheme}:// needs {package}, which this node lacks; pip install {package}") from None
    except FileNotFoundError:
        raise DataError(f"{field}: there is no {uri}; see its spelling and that this node may list it") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{field}: {uri} cannot be read: {error}") from error
    return Location(
        uri,
        suffix,
        f"{uri}|{version}",
        lambda scratch: _downloaded(uri, scratch, lambda to: store.get_file(path, str(to))),
    )


def _downloaded(uri: str, scratch: Path, write: Callable[[Path], None]) -> Path:
    path = scratch / (hashlib.sha256(uri.encode()).hexdigest() + (".gz" if urlsplit(uri).path.endswith(".gz") else ""))
    write(path)
    return _plain(path, scratch)


def _plain(path: Path, scratch: Path) -> Path:
    if path.suffix != ".gz":
        return path
    # By its whole path: inputs and labels may have one name in two folders.
    target = scratch / f"plain-{hashlib.sha256(bytes(path)).hexdigest()}"
    with gzip.open(path) as packed, target.open("wb") as handle:
        shutil.copyfileobj(packed, handle)
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
