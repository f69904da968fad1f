"""Embedded servers: shared by processes, stopped by the last one, and back after every kind of kill."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker.embedded import EmbeddedRedis
from cyxwiz_tasks.errors import ServerUnavailable
from db import embedded_account
from db.databases import driver_url
from db.embedded import EmbeddedPostgres, find_postgres
from db.embedded_server import EmbeddedServer

ROOT = Path(__file__).parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="about root alone")
#: a process that uses a server until its standard input closes
USER = """
import sys
from broker.embedded import EmbeddedRedis
from db.embedded import EmbeddedPostgres
kind = {"EmbeddedRedis": EmbeddedRedis, "EmbeddedPostgres": EmbeddedPostgres}[sys.argv[1]]
with kind(sys.argv[2]):
    print("started", flush=True)
    sys.stdin.read()
"""
Kind = type[EmbeddedRedis] | type[EmbeddedPostgres]
both = pytest.mark.parametrize("kind", [EmbeddedRedis, EmbeddedPostgres])


@pytest.fixture(autouse=True)
def _everything_below_one_folder(server_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies outside of a server's folder goes here too, so that nothing is left behind."""
    monkeypatch.setattr(embedded_account, "SHARED_FOLDER", server_folder / "var")
    (server_folder / "tmp").mkdir(mode=0o711)
    monkeypatch.setattr(tempfile, "tempdir", str(server_folder / "tmp"))


@pytest.fixture
def users() -> Iterator[Callable[[Kind, Path], subprocess.Popen[str]]]:
    """Start processes that use a server; they end with the test."""
    with ExitStack() as stack:

        def start(kind: Kind, folder: Path) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", USER, kind.__name__, str(folder)]
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
            stack.enter_context(process)  # closes its input, then waits for it
            stack.callback(process.kill)
            return process

        yield start


def wait_until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        time.sleep(0.02)


def server_processes(folder: Path) -> list[psutil.Process]:
    """The server's own processes: they hold run.lock open, as the keeper does."""
    lock, found = os.stat(folder / "run.lock"), []
    for process in psutil.process_iter():
        try:
            opened = [os.stat(fd) for fd in Path(f"/proc/{process.pid}/fd").iterdir()]
        except OSError:
            continue
        if any((each.st_dev, each.st_ino) == (lock.st_dev, lock.st_ino) for each in opened):
            found.append(process)
    return sorted(found, key=lambda process: process.create_time())


def keeper_and_server(folder: Path) -> tuple[psutil.Process, psutil.Process]:
    processes = {process.pid: process for process in server_processes(folder)}
    keeper = next(process for process in processes.values() if process.ppid() not in processes)
    return keeper, next(process for process in processes.values() if process.ppid() == keeper.pid)


def write(server: EmbeddedServer, value: str) -> None:
    if isinstance(server, EmbeddedRedis):
        with redis.Redis.from_url(server.url) as client:
            client.set("kept", value)
            client.waitaof(1, 0, 5000)
    elif isinstance(server, EmbeddedPostgres):
        with psycopg.connect(server.dsn) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS kept (value text)")
            connection.execute("INSERT INTO kept VALUES (%s)", [value])


def read(server: EmbeddedServer) -> str:
    if isinstance(server, EmbeddedRedis):
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            return str(client.get("kept"))
    assert isinstance(server, EmbeddedPostgres)
    with psycopg.connect(server.dsn) as connection:
        row = connection.execute("SELECT value FROM kept").fetchone()
        return str(row and row[0])


@both
def test_processes_that_race_share_one_server_and_the_last_one_out_stops_it(
    kind: Kind, server_folder: Path, users: Callable[[Kind, Path], subprocess.Popen[str]]
) -> None:
    folder = server_folder / "data"
    racing = [users(kind, folder) for _ in range(3)]
    for user in racing:
        assert user.stdout is not None
        assert user.stdout.readline() == "started\n"
    _, server = keeper_and_server(folder)
    for user in racing:
        assert kind(folder).alive()
        assert server.is_running()
        user.communicate()
    assert not server.is_running()
    assert not kind(folder).alive()


@both
def test_the_last_user_is_killed_and_the_server_goes(
    kind: Kind, server_folder: Path, users: Callable[[Kind, Path], subprocess.Popen[str]]
) -> None:
    user = users(kind, server_folder / "data")
    assert user.stdout is not None
    assert user.stdout.readline() == "started\n"
    processes = server_processes(server_folder / "data")
    assert len(processes) >= 2
    user.kill()
    wait_until(lambda: not any(process.is_running() for process in processes))


@both
@pytest.mark.parametrize("victim", ["keeper", "server"])
def test_after_a_kill_it_starts_again_with_its_data(kind: Kind, victim: str, server_folder: Path) -> None:
    with kind(server_folder) as server:
        write(server, "survivor")
        url = server.url
        keeper, process = keeper_and_server(server_folder)
        (keeper if victim == "keeper" else process).kill()
        wait_until(lambda: not server.alive())
        server.start()
        assert read(server) == "survivor"
        assert server.url == url


@both
def test_stop_and_start_keep_data_and_url(kind: Kind, server_folder: Path) -> None:
    server = kind(server_folder)
    with server:
        write(server, "kept")
        url = server.url
    assert not server.alive()
    with server:
        assert read(server) == "kept"
        assert server.url == url


@both
@pytest.mark.parametrize("name", ["with space", "größe %s 'q\" $(x)", "/".join(["deep" * 10] * 8)])
def test_folders_with_difficult_names(kind: Kind, name: str, server_folder: Path) -> None:
    with kind(server_folder / name) as server:
        assert "%" not in server.url
        write(server, "here")
        assert read(server) == "here"
        assert server.socket_path.exists()


def test_users_with_different_temporary_folders_share_one_server(
    server_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = server_folder / "with space"
    with EmbeddedRedis(folder) as first:
        monkeypatch.setattr(tempfile, "tempdir", str(server_folder))
        with EmbeddedRedis(folder) as second:
            assert second.url == first.url
        assert first.alive()


def test_a_server_that_is_slow_to_answer_is_joined_and_not_replaced(server_folder: Path) -> None:
    answers: list[bool] = []

    class Watched(EmbeddedRedis):
        def alive(self) -> bool:
            answers.append(super().alive())
            return answers[-1]

    with EmbeddedRedis(server_folder) as first, ThreadPoolExecutor() as pool:
        url, processes = first.url, keeper_and_server(server_folder)
        processes[1].suspend()
        starting = pool.submit(Watched(server_folder).start)
        wait_until(lambda: answers)
        processes[1].resume()
        second = starting.result()
        assert answers[0] is False
        assert second.url == url
        assert keeper_and_server(server_folder) == processes
        second.stop()


def test_redis_asks_for_its_password_and_shows_it_to_nobody(server_folder: Path) -> None:
    with EmbeddedRedis(server_folder) as server:
        with (
            redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()
        for process in keeper_and_server(server_folder):
            assert server.password not in " ".join(process.cmdline())
            assert server.password not in str(process.environ())
        for name in ("password", "redis.conf"):
            assert stat.S_IMODE((server_folder / name).stat().st_mode) == 0o600
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            settings = client.config_get("maxmemory*", "append*")
    assert settings["maxmemory"] == str(512 * 1024 * 1024)
    assert settings["maxmemory-policy"] == "noeviction"
    assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "everysec")


def test_redis_takes_another_port_when_its_own_is_taken(server_folder: Path) -> None:
    with EmbeddedRedis(server_folder) as server:
        port = server.port
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        with server:
            assert server.port != port
            write(server, "here")


def test_redis_that_is_in_use_comes_back_at_its_own_port_or_says_why_not(server_folder: Path) -> None:
    with EmbeddedRedis(server_folder) as server:
        write(server, "kept")
        url = server.url
        keeper_and_server(server_folder)[1].kill()
        wait_until(server.has_ended)
        assert "the server ended with status -9" in server.log_file.read_text()
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", server.port))
            other.listen()
            for _ in range(2):
                with pytest.raises(ServerUnavailable, match=f"port {server.port} .*taken by another program"):
                    server.start()
        server.start()
        assert server.url == url
        assert read(server) == "kept"


def test_redis_survives_that_its_port_is_taken_between_look_and_start(
    server_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        choose, choices = EmbeddedRedis._choose_port, iter([taken])
        monkeypatch.setattr(
            EmbeddedRedis, "_choose_port", lambda self, hosts: next(choices, None) or choose(self, hosts)
        )
        with EmbeddedRedis(server_folder) as server:
            assert server.port != taken
            write(server, "here")


@pytest.mark.skipif(sys.platform != "linux", reason="has only one loopback address elsewhere")
@pytest.mark.parametrize("listen", ["127.0.0.2", "0.0.0.0"])
def test_redis_listens_where_it_is_told_to(listen: str, server_folder: Path) -> None:
    with EmbeddedRedis(server_folder, listen=listen) as server:
        for url in (server.url, server.url_for("127.0.0.2")):
            with redis.Redis.from_url(url) as client:
                assert client.ping()
        with EmbeddedRedis(server_folder) as local:
            assert local.alive()


@pytest.mark.skipif(sys.platform != "linux", reason="has only one loopback address elsewhere")
def test_redis_that_runs_already_does_not_listen_elsewhere_by_itself(server_folder: Path) -> None:
    with EmbeddedRedis(server_folder) as local:
        with redis.Redis.from_url(local.url_for("127.0.0.2")) as client, pytest.raises(redis.ConnectionError):
            client.ping()
        with pytest.raises(ServerUnavailable, match=r"listens on 127\.0\.0\.1 alone"):
            EmbeddedRedis(server_folder, listen="127.0.0.2").start()
        assert local.alive()


def test_databases_are_copied_and_dropped(server_folder: Path) -> None:
    with EmbeddedPostgres(server_folder) as server:
        first = server.create_database("first:one %s")
        with psycopg.connect(driver_url(first)) as connection:
            connection.execute("CREATE TABLE t AS SELECT 42 AS answer")
        server.create_database("copy", template="first:one %s")
        with psycopg.connect(server.dsn, dbname="copy") as connection:
            row = connection.execute("SELECT answer, current_setting('max_connections') FROM t").fetchone()
            assert row == (42, "100")
            server.drop_database("copy")
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        server.drop_database("copy")
        server.drop_database("first:one %s")
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            psycopg.connect(server.dsn, dbname="copy")


def test_a_start_that_fails_says_why_and_leaves_nothing_behind(server_folder: Path) -> None:
    with pytest.raises(ServerUnavailable, match="no_such_setting"):
        EmbeddedPostgres(server_folder, settings={"no_such_setting": "1"}).start()
    assert server_processes(server_folder) == []
    with EmbeddedPostgres(server_folder) as server:
        assert server.alive()


def test_the_data_of_another_major_version_is_refused(server_folder: Path) -> None:
    with EmbeddedPostgres(server_folder) as server:
        data = server_folder / "server" / "pgdata"
    (data / "PG_VERSION").write_text("12\n")
    with pytest.raises(ServerUnavailable, match="written by PostgreSQL 12"):
        server.start()


def test_what_a_killed_first_start_left_does_no_harm(server_folder: Path) -> None:
    (server_folder / "server" / "init-left").mkdir(parents=True, mode=0o700)
    (server_folder / "server" / "init-left" / "PG_VERSION").write_text("1\n")
    with EmbeddedPostgres(server_folder) as server:
        assert server.alive()
        assert not (server_folder / "server" / "init-left").exists()


def test_a_pid_that_is_another_process_by_now_does_not_hinder_the_start(server_folder: Path) -> None:
    with EmbeddedPostgres(server_folder) as server:
        keeper, process = keeper_and_server(server_folder)
        pid_file = server_folder / "server" / "pgdata" / "postmaster.pid"
        left, owner = pid_file.read_text(), process.uids().real
        keeper.kill()
        wait_until(lambda: not process.is_running())
        other = subprocess.Popen(
            ["/bin/sh", "-c", "read _"], stdin=subprocess.PIPE, user=owner if os.geteuid() == 0 else None, cwd="/"
        )
        with other:
            pid_file.write_text(left.replace(str(process.pid), str(other.pid), 1))
            server.start()
            assert server.alive()


@as_root
def test_root_runs_postgresql_as_somebody_else(server_folder: Path) -> None:
    with EmbeddedPostgres(server_folder):
        assert keeper_and_server(server_folder)[1].uids().real != 0
        assert stat.S_IMODE((server_folder / "server").stat().st_mode) == 0o700


@as_root
def test_in_a_private_home_data_and_binaries_go_where_the_account_reaches_them(
    server_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = Path(tempfile.mkdtemp(dir=server_folder))
    installed = find_postgres().parent
    package = private / "site-packages" / installed.parent.name
    shutil.copytree(installed, package / installed.name, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
    libraries = installed.parent.with_name(f"{installed.parent.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, package.with_name(libraries.name))
    monkeypatch.setenv("CYXWIZ_PG_BIN", str(package / installed.name / "bin"))
    with EmbeddedPostgres(private / "data") as server:
        write(server, "kept")
        _, process = keeper_and_server(private / "data")
        assert process.uids().real != 0
        assert Path(process.exe()).is_relative_to(server_folder / "var" / "bin")
        place = Path((private / "data" / "location.txt").read_text().strip())
        assert place.is_relative_to(server_folder / "var" / "data")
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    shutil.move(private / "data", private / "renamed")
    with EmbeddedPostgres(private / "renamed") as server:
        assert read(server) == "kept"
    # As in a container that is made anew with the home mounted.
    shutil.move(place, server_folder / "away")
    with pytest.raises(ServerUnavailable, match=rf"none in {place}.*location\.txt.*Bring {place} back"):
        EmbeddedPostgres(private / "renamed").start()
    shutil.move(server_folder / "away", place)
    with EmbeddedPostgres(private / "renamed") as server:
        assert read(server) == "kept"


@as_root
def test_root_that_can_be_nobody_else_uses_a_namespace(server_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if subprocess.run(["unshare", "--user", "true"], check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no user namespaces on this machine")
    monkeypatch.setattr(embedded_account, "ACCOUNTS", ())
    private = Path(tempfile.mkdtemp(dir=server_folder))
    with EmbeddedPostgres(private) as server:
        write(server, "kept")
        keeper, process = keeper_and_server(private)
        assert process.uids().real == 0
        assert (private / "server" / "pgdata").stat().st_uid == 0
        keeper.kill()
        wait_until(lambda: not process.is_running())
        server.start()
        assert read(server) == "kept"


def test_the_address_file_is_the_owners_alone(server_folder: Path) -> None:
    with EmbeddedRedis(server_folder) as server:
        address = server_folder / "address.json"
        assert stat.S_IMODE(address.stat().st_mode) == 0o600
        assert json.loads(address.read_text())["port"] == server.port
