"""Which generations there are below a job's checkpoints: `<token>/<generation>/`. Needs no torch.

Each attempt writes below its own fencing token, and touches nothing of a higher one: a zombie, an attempt that was
declared lost and runs on, cannot disturb its successor. The order is (token, generation) and not the step. A zombie may
get further than its successor, but what it does after the successor's first checkpoint is fenced; before that, its
checkpoints are the newest there are, and taking them loses nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cyxwiz_tasks.checkpoints.manifest import MANIFEST

#: The newest, and one to fall back to.
KEPT = 2
PARTIAL = ".partial"


class Generation(NamedTuple):
    """One checkpoint; the highest is the newest."""

    token: int
    number: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.token}/{self.number}"


def generations(root: Path, token: int) -> list[Generation]:
    """Those of this token and older ones, the newest first. Whether they are whole is not looked at."""
    found = [
        Generation(int(attempt.name), int(folder.name), folder)
        for attempt in _numbered(root)
        if int(attempt.name) <= token
        for folder in _numbered(attempt)
    ]
    return sorted(found, reverse=True)


def next_number(root: Path, token: int) -> int:
    """The number of this token's next generation: above all that it has begun."""
    begun = _entries(root / str(token))
    return 1 + max((int(stem) for entry in begun if (stem := entry.name.removesuffix(PARTIAL)).isdecimal()), default=0)


def prune(root: Path, token: int) -> None:
    """Keep the newest generations of this token and older ones, and remove what else those have left behind."""
    finished = [found for found in generations(root, token) if (found.folder / MANIFEST).exists()]
    kept = {found.folder for found in finished[:KEPT]}
    for attempt in _numbered(root):
        if int(attempt.name) > token:
            continue
        for entry in _entries(attempt):
            if entry not in kept:
                remove(entry)
        if int(attempt.name) < token:
            with suppress(OSError):  # it still holds one
                attempt.rmdir()


def remove(folder: Path) -> None:
    """Remove a generation: its manifest first, so that half of it is none."""
    with suppress(OSError):
        (folder / MANIFEST).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _numbered(folder: Path) -> Iterator[Path]:
    return (entry for entry in _entries(folder) if entry.name.isdecimal())


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
