"""Which nodes find each other's checkpoints: those that name the same place.

Nodes that keep them in one folder, on one machine or on a file system that they share, read the same id there. With an
artifact store it is the store's address that they have in common, of which only a hash is told.
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from cyxwiz_tasks.settings import Settings

log = logging.getLogger(__name__)

_ID = ".place"


def checkpoint_place(settings: Settings) -> str | None:
    """The place's id; None: this node cannot tell, so no other one counts on finding anything."""
    store = settings.artifact_store
    url = urlsplit(store or "")
    if store is None or url.scheme in ("", "file", "local"):
        # The same path is another disk on another machine, unless it is shared.
        folder = Path(url.path) if store is not None else settings.home / "artifacts"
        try:
            return _id_in(folder)
        except OSError as error:
            log.warning("%s has no id (%s): jobs do not move from here to make room for bigger ones", folder, error)
            return None
    return hashlib.sha256(store.rstrip("/").encode()).hexdigest()[:32]


def _id_in(folder: Path) -> str:
    """The id that lies in a folder; whoever comes first makes it, and nobody reads half of it."""
    folder.mkdir(parents=True, exist_ok=True)
    file, made = folder / _ID, uuid.uuid4().hex
    if not file.exists():
        mine = folder / f"{_ID}.{made}"
        mine.write_text(made)
        try:
            os.link(mine, file)
        except FileExistsError:
            pass
        finally:
            mine.unlink()
    return file.read_text()
