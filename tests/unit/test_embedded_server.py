"""What the embedded servers share, as far as it needs no server."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cyxwiz_tasks.errors import ServerUnavailable
from db.embedded_server import SOCKET_PATH_BYTES, server_environment, socket_folder, write_private


def test_a_socket_lies_in_the_folder_itself_where_its_address_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    room = SOCKET_PATH_BYTES - len(str(tmp_path)) - 1
    assert socket_folder(tmp_path, "s" * room) == tmp_path
    assert socket_folder(tmp_path, "s" * (room + 1)) != tmp_path


@pytest.mark.parametrize("name", ["with space", "with%percent", "größe", 'quo"te', "x" * 200])
def test_other_folders_get_a_short_private_one(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("t")))
    folder = tmp_path / name
    folder.mkdir()
    short = socket_folder(folder, "redis.sock")
    assert len(str(short / "redis.sock")) <= SOCKET_PATH_BYTES
    assert stat.S_IMODE(short.stat().st_mode) == 0o700
    assert socket_folder(folder, "redis.sock") == short


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder that is another user's")
def test_a_short_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / "with space"
    folder.mkdir()
    os.chown(socket_folder(folder, "redis.sock"), 12345, 12345)
    with pytest.raises(ServerUnavailable, match="belongs to someone else"):
        socket_folder(folder, "redis.sock")


def test_a_private_file_is_the_owners_alone_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("old and longer")
    (tmp_path / "password.part").write_text("left by a kill")
    write_private(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["password"]


def test_a_server_sees_none_of_our_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGDATA", "PGPASSWORD", "LC_MESSAGES", "CYXWIZ_BROKER_URL"):
        monkeypatch.setenv(name, "x")
    environment = server_environment()
    assert set(environment) <= {"PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR", "HOME", "LC_ALL", "TZ"}
    assert environment["TZ"] == "UTC"
