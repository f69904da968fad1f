"""The manifest of one generation: what it holds, and how to tell that it holds it still. Needs no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cyxwiz_tasks.errors import CyxwizError

MANIFEST = "manifest.json"


class NotWhole(CyxwizError):
    """A generation lacks its manifest, or a file of it is missing or has changed."""


class FileFacts(BaseModel):
    """One file, as it was written."""

    model_config = ConfigDict(frozen=True)

    size_bytes: int
    sha256: str


class Manifest(BaseModel):
    """Written last: a generation without one was never finished."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = Field(default=1, le=1)
    step: int
    #: fencing token of the attempt that wrote it
    token: int
    generation: int
    files: dict[str, FileFacts]
    #: of what wrote it: "torch", "python", "cyxwiz_tasks"
    versions: dict[str, str]


def describe(path: Path) -> FileFacts:
    """Size and checksum of a file as it is now."""
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        return FileFacts(size_bytes=handle.tell(), sha256=digest)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a generation. Raises NotWhole."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise NotWhole(f"its manifest cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise NotWhole(f"its manifest is damaged ({error.errors()[0]['msg']})") from error


def check_whole(folder: Path) -> Manifest:
    """Compare every file with the manifest; return that. Raises NotWhole, which names the file."""
    manifest = read_manifest(folder)
    for name, facts in manifest.files.items():
        if Path(name).name != name:
            raise NotWhole(f"its manifest names {name!r}, which is no file of its folder")
        try:
            # The size first: it tells most damage, and costs nothing.
            size_bytes = (folder / name).stat().st_size
            whole = size_bytes == facts.size_bytes and describe(folder / name) == facts
        except OSError as error:
            raise NotWhole(f"{name} cannot be read ({error.strerror})") from error
        if not whole:
            raise NotWhole(f"{name} has changed since it was written ({size_bytes} of {facts.size_bytes} bytes)")
    return manifest
