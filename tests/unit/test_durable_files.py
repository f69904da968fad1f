"""What is on the disk before a file gets its name. No power is lost here: the calls are recorded instead."""

from __future__ import annotations

import os
from pathlib import Path

from cyxwiz_tasks.checkpoints.durable import make_folder, write_whole


def _recorded(monkeypatch) -> list[tuple[str, str]]:
    calls: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def record_sync(descriptor: int) -> None:
        calls.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def record_replace(path: Path, target: Path) -> Path:
        calls.append(("replace", Path(target).name))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "replace", record_replace)
    return calls


def test_the_content_is_synced_before_the_name_and_the_name_after_it(tmp_path, monkeypatch):
    calls = _recorded(monkeypatch)
    write_whole(tmp_path / "a.file", lambda path: path.write_text("content"))
    assert calls == [("sync", ".a.file.partial"), ("replace", "a.file"), ("sync", tmp_path.name)]
    assert (tmp_path / "a.file").read_text() == "content"


def test_each_new_folder_is_known_to_the_one_above(tmp_path, monkeypatch):
    calls = _recorded(monkeypatch)
    make_folder(tmp_path / "one" / "two")
    assert calls == [("sync", tmp_path.name), ("sync", "one")]
