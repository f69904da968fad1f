"""Logs that are too long, also where the disk has no room for a second one."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from db import log_limit


def test_a_disk_without_room_for_the_copy_gets_the_room_of_the_log(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(source: Path, target: Path) -> None:
        target.write_text("as much as fits")
        raise OSError(errno.ENOSPC, "No space left on device")

    log = tmp_path / "server.log"
    log.write_text("x" * 101)
    monkeypatch.setattr(log_limit, "LOG_LIMIT_BYTES", 100)
    monkeypatch.setattr(log_limit.shutil, "copy", copy)
    assert log_limit.limit_log(log)
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("server.log", 0)]
    assert not log_limit.limit_log(log)
