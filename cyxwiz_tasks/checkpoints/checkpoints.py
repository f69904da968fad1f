"""Save and load one attempt's checkpoints.

A generation is written into a folder of another name: its files, each synced, its manifest last. Then one rename makes
it appear whole. Whoever is killed before that leaves a folder that nobody looks into.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyxwiz_tasks.checkpoints.contents import read_contents, versions, write_contents
from cyxwiz_tasks.checkpoints.durable import make_folder, sync
from cyxwiz_tasks.checkpoints.generations import (
    PARTIAL,
    Generation,
    generations,
    next_number,
    prune,
    remove,
)
from cyxwiz_tasks.checkpoints.manifest import MANIFEST, Manifest, NotWhole, check_whole, describe
from cyxwiz_tasks.checkpoints.values import storable


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints that one attempt may read: its own and older ones. It writes only its own.

    `root` is the job's folder of checkpoints, `say` takes a line for the job's log.
    """

    root: Path
    token: int
    say: Callable[[str], object]

    def save(self, step: int, state: dict[str, Any]) -> Generation:
        """Write a new generation and remove those that are no longer needed.

        Raises TypeError or ValueError for what a checkpoint cannot hold, and OSError where it cannot be written; then
        all earlier generations are as they were.
        """
        kept = {_name(name): storable(name, value) for name, value in state.items()}
        number = next_number(self.root, self.token)
        made = Generation(self.token, number, self.root / str(self.token) / f"{number:06d}")
        partial = made.folder.with_name(made.folder.name + PARTIAL)
        try:
            make_folder(partial)
            write_contents(partial, {"step": step, **kept})
            self._write_manifest(partial, step, number)
            partial.rename(made.folder)
        except BaseException:
            remove(partial)
            raise
        sync(made.folder.parent)
        prune(self.root, self.token)
        return made

    def load(self) -> dict[str, Any] | None:
        """The newest whole checkpoint as it was saved, with its `step`; None if there is none.

        Raises CheckpointUnusable for one that is whole, but that this version of torch cannot read.
        """
        tried: set[Path] = set()
        # A zombie may still write and prune: what it took away meanwhile, it has newer ones for.
        while found := [each for each in generations(self.root, self.token) if each.folder not in tried]:
            for generation in found:
                tried.add(generation.folder)
                try:
                    return self._read(generation)
                except NotWhole as error:
                    self.say(f"checkpoint {generation.name} is not whole: {error}. The one before it is tried")
        return None

    def _write_manifest(self, folder: Path, step: int, number: int) -> None:
        files = {}
        for path in sorted(folder.iterdir()):
            sync(path)
            files[path.name] = describe(path)
        manifest = Manifest(step=step, token=self.token, generation=number, files=files, versions=versions())
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1))
        sync(folder / MANIFEST)
        sync(folder)

    def _read(self, generation: Generation) -> dict[str, Any]:
        began = time.monotonic()
        manifest = check_whole(generation.folder)
        if (manifest.token, manifest.generation) != (generation.token, generation.number):
            raise NotWhole(f"its manifest is that of {manifest.token}/{manifest.generation}")
        try:
            state = read_contents(generation.folder, list(manifest.files), manifest.versions)
        except OSError as error:
            raise NotWhole(f"it went away while it was read ({error})") from error
        seconds = time.monotonic() - began
        self.say(f"resumes from checkpoint {generation.name}, step {state['step']} (read in {seconds:.2f} s)")
        return state


def _name(name: str) -> str:
    if not name.isidentifier():
        raise ValueError(f"checkpoint: {name!r} cannot name a part of it: use letters, digits and underscores")
    return name
