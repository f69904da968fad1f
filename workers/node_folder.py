"""A node's own folder: its id, its measurements, and the logs of its attempts. One worker at a time may use it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from cyxwiz_tasks.errors import CyxwizError, InvalidSettings


class FolderTaken(CyxwizError):
    """Another worker runs with this node's name here: give this one another `--name`."""


class NodeFolder:
    """`home/nodes/<name>`, locked for as long as this object lives."""

    def __init__(self, home: Path, name: str | None) -> None:
        """The name defaults to the machine's. Raises InvalidSettings for a bad name or home, FolderTaken."""
        self.name = name or socket.gethostname().split(".")[0]
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", self.name):
            raise InvalidSettings(f'--name: "{self.name}" is not a name: use letters, digits, "_", "." and "-"')
        self.path = home / "nodes" / self.name
        try:
            (self.path / "attempts").mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise InvalidSettings(
                f"--home: {self.path} cannot be made ({error.strerror}): name a folder in which you may write"
            ) from None
        self._lock = open(self.path / "lock", "w")  # noqa: SIM115 - held while this object lives
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise FolderTaken(f"node {self.name}: {FolderTaken.__doc__} ({self.path})") from None
        self.id = self._read_or_make_id()

    def attempt_path(self, token: int) -> Path:
        """The folder of one attempt, which its process makes, or its log."""
        return self.path / "attempts" / str(token)

    def own_path(self, token: int) -> Path:
        """What is the node's own in there: the job's working directory, where the job may call a file "log" as well."""
        return self.attempt_path(token) / ".cyxwiz"

    def forget_attempts(self, older_than_seconds: float, keep: Collection[int] = ()) -> int:
        """Remove folders of attempts below which nothing changed for so long, except of those in `keep`; how many."""
        limit, removed = time.time() - older_than_seconds, 0
        kept = {str(token) for token in keep}
        for folder in (self.path / "attempts").iterdir():
            with suppress(FileNotFoundError):
                if folder.name not in kept and last_change(folder) < limit:
                    shutil.rmtree(folder, ignore_errors=True)
                    removed += 1
        return removed

    def close(self) -> None:
        """Let another worker have the folder."""
        self._lock.close()

    def _read_or_make_id(self) -> str:
        file = self.path / "id"
        try:
            return str(uuid.UUID(file.read_text().strip()))
        except (OSError, ValueError):
            made = str(uuid.uuid4())
        temporary = file.with_suffix(".new")
        temporary.write_text(made)
        temporary.replace(file)
        return made


def last_change(folder: Path) -> float:
    """The newest time of modification of all files and folders below, and of itself."""
    newest = folder.stat().st_mtime
    for parent, _, names in os.walk(folder):
        for name in (".", *names):
            with suppress(OSError):  # it is gone, or a job has closed its folder to us
                newest = max(newest, os.lstat(os.path.join(parent, name)).st_mtime)
    return newest
