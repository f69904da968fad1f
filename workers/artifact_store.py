"""Where a job's checkpoints and artifacts go besides the node's own disk, for a next attempt on another node.

`CYXWIZ_ARTIFACT_STORE` is any address that fsspec knows: `s3://bucket/prefix`, `gs://...`, `file:///mnt/shared`. Only
the agent uses it; a job's process holds no credentials. The layout is that of `home/artifacts`. Content is sent first
and the manifest last, so what has a manifest is whole; and each attempt writes below its own token, so nothing that is
there is ever replaced by something else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from cyxwiz_tasks.checkpoints.durable import make_folder, sync
from cyxwiz_tasks.checkpoints.generations import KEPT, PARTIAL, Generation, remove
from cyxwiz_tasks.checkpoints.manifest import MANIFEST, NotWhole, check_whole, read_manifest
from cyxwiz_tasks.errors import InvalidSettings


class ArtifactStore:
    """Raises whatever its file system raises; the caller tries again. For any thread."""

    def __init__(self, address: str) -> None:
        """Raises InvalidSettings for an address that nothing here can open."""
        try:
            self._files, root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError, OSError) as error:
            raise InvalidSettings(f"CYXWIZ_ARTIFACT_STORE: {address!r} cannot be used: {error}") from error
        self._root = root.rstrip("/")

    def push(self, folder: Path, key: str) -> int:
        """Send every file that is not there with its size; those of other sizes were cut off. Returns bytes sent."""
        there, sent_bytes = self._sizes(key), 0
        for path in sorted(_files_below(folder), key=lambda path: (path.name == MANIFEST, path)):
            name, size_bytes = path.relative_to(folder).as_posix(), path.stat().st_size
            if there.get(name) == size_bytes:
                continue
            target = f"{self._root}/{key}/{name}"
            self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(path), target)
            sent_bytes += size_bytes
        return sent_bytes

    def generations(self, job: str, token: int) -> list[Generation]:
        """Finished checkpoints of this token and older ones, the newest first; `folder` is where they lie here."""
        found = []
        for name in self._sizes(f"{job}/checkpoints"):
            attempt, _, rest = name.partition("/")
            number, _, file = rest.partition("/")
            if file == MANIFEST and attempt.isdecimal() and number.isdecimal() and int(attempt) <= token:
                found.append(Generation(int(attempt), int(number), Path(attempt, number)))
        return sorted(found, reverse=True)

    def fetch(self, job: str, generation: Generation, root: Path) -> None:
        """Bring one checkpoint below `root`, where it appears once it is whole. Raises NotWhole where it is damaged."""
        folder = root / generation.folder
        partial = folder.with_name(folder.name + PARTIAL)
        source = f"{self._root}/{job}/checkpoints/{generation.folder.as_posix()}"
        remove(partial)
        make_folder(partial)
        try:
            self._files.get_file(f"{source}/{MANIFEST}", str(partial / MANIFEST))
            for name in read_manifest(partial).files:
                if Path(name).name != name:
                    raise NotWhole(f"its manifest names {name!r}, which is no file of its folder")
                self._files.get_file(f"{source}/{name}", str(partial / name))
                sync(partial / name)
            check_whole(partial)
            remove(folder)  # one that is damaged, or this would not have been fetched
            partial.rename(folder)
            sync(folder.parent)
        finally:
            remove(partial)

    def prune(self, job: str, token: int) -> None:
        """Keep the newest checkpoints of this token and older ones; what a higher token wrote is not touched."""
        finished = self.generations(job, token)
        kept = {generation.folder.as_posix() for generation in finished[:KEPT]}
        begun = {name.rpartition("/")[0] for name in self._sizes(f"{job}/checkpoints")}
        for folder in begun - kept:
            attempt = folder.partition("/")[0]
            if attempt.isdecimal() and int(attempt) <= token:
                self.remove(f"{job}/checkpoints/{folder}")

    def remove(self, key: str) -> None:
        """Remove all below a key, manifests first."""
        names = sorted(self._sizes(key), key=lambda name: not name.endswith(MANIFEST))
        for name in names:
            self._files.rm_file(f"{self._root}/{key}/{name}")

    def _sizes(self, key: str) -> dict[str, int]:
        """Every file below a key, by its name from there."""
        top, found = f"{self._root}/{key}", {}
        # Some file systems remember listings, and other nodes write here too.
        self._files.invalidate_cache()
        folders = [top]
        # Not fsspec's `find`: where a folder cannot be read it says that nothing is there.
        while folders:
            folder = folders.pop()
            for name, facts in self._listed(folder).items():
                if facts["type"] == "directory":
                    folders.append(name)
                else:
                    found[name.removeprefix(f"{top}/")] = facts["size"]
        return found

    def _listed(self, folder: str) -> dict[str, dict[str, Any]]:
        try:
            listed = {facts["name"].rstrip("/"): facts for facts in self._files.ls(folder, detail=True)}
        except FileNotFoundError:
            return {}
        # Object stores list an empty object of the folder's own name in it.
        listed.pop(folder, None)
        return listed


def _files_below(folder: Path) -> Iterator[Path]:
    # No links: what they point to is not the job's.
    for parent, _, names in os.walk(folder):
        yield from (path for name in names if (path := Path(parent, name)).is_file() and not path.is_symlink())
