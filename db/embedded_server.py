"""What the embedded servers share: one folder, any number of processes that use it, the last one out stops the server.

Locks in the folder, all of them flock(), which the kernel drops however a process ends:

* ``start.lock``: one process at a time starts a server here;
* ``use.lock``: shared by everyone who uses the server; the keeper takes it alone once nobody is left;
* ``run.lock``: held by the server's own processes, so there are never two servers on one folder.

``address.json`` says where the running server listens. It is read, never computed again, because another process may
see another TMPDIR. A process that was forked from a user holds the use as well, until both have ended.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, Self

from cyxwiz_tasks.errors import ServerUnavailable
from db import embedded_keeper
from db.log_limit import limit_log

#: a socket's path has 104 bytes on macOS and 108 on Linux, with the zero at the end
SOCKET_PATH_BYTES = 103
#: where the running server listens; kept from its first start on
ADDRESS_FILE = "address.json"
#: an orderly stop that takes longer goes on without us
STOP_WAIT_SECONDS = 20.0


@dataclass(frozen=True)
class Launch:
    """How to start a server. `account` is (uid, gid), or None to run it as we are."""

    command: list[str]
    address: dict[str, Any]
    account: tuple[int, int] | None = None
    #: files that a killed server leaves and that would hinder the next one
    stale_files: list[Path] = field(default_factory=list)


class EmbeddedServer(ABC):
    """A server in a folder of its own. Use it as a context manager, or with start() and stop().

    Using it lasts for as long as this object does: who drops it without stop() gives up the use as well.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[int]

    def __init__(self, folder: str | os.PathLike[str], *, start_timeout_seconds: float = 60.0) -> None:
        self.folder = Path(folder).expanduser().resolve()
        self.start_timeout_seconds = start_timeout_seconds
        self._use: IO[str] | None = None

    @abstractmethod
    def _launch(self) -> Launch:
        """Make the folder ready for a start and say what to run. Raises ServerUnavailable if it cannot be."""

    @abstractmethod
    def _handshake(self, connection: socket.socket) -> bool:
        """Whether the server behind `connection` takes commands now."""

    def start(self) -> Self:
        """Use the server, starting it if it does not run; start again if it was killed meanwhile.

        Raises ServerUnavailable with the reason and the end of the server's log.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(self.folder / "start.lock", "w", opener=_private) as gate:
                fcntl.flock(gate, fcntl.LOCK_EX)
                self._start_alone()
        except PermissionError as error:
            raise ServerUnavailable(
                f"{self.name} in {self.folder}: {error}; start it as the owner of that folder, or choose another one"
            ) from error
        return self

    def stop(self) -> None:
        """Give up our use. Waits for the server's end if we were the last to use it."""
        if self._use is None:
            return
        self._use.close()
        self._use = None
        deadline = time.monotonic() + STOP_WAIT_SECONDS
        while time.monotonic() < deadline and not self._others_use_it_or_it_has_stopped():
            time.sleep(0.02)

    def alive(self) -> bool:
        """Whether the server takes commands now. Answers within two seconds."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(2.0)
                connection.connect(str(self.socket_path))
                return self._handshake(connection)
        except (OSError, ServerUnavailable):
            return False

    def has_ended(self) -> bool:
        """Whether no process of the server is left, however it ended. One that is slow or overloaded has not."""
        with open(self.folder / "run.lock", "a", opener=_private) as run:
            return _lock(run, fcntl.LOCK_EX)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def address(self) -> dict[str, Any]:
        """Where the server listens, as it was started last. Raises ServerUnavailable if it never was."""
        try:
            return dict(json.loads((self.folder / ADDRESS_FILE).read_text()))
        except FileNotFoundError:
            raise ServerUnavailable(f"{self.name} was never started in {self.folder}: call start() first") from None

    @property
    def log_file(self) -> Path:
        return self.folder / "server.log"

    @property
    def socket_path(self) -> Path:
        return Path(self.address["socket"])

    def _start_alone(self) -> None:
        use = self._use or open(self.folder / "use.lock", "w", opener=_private)  # noqa: SIM115 - held open for as long as we use it
        try:
            fcntl.flock(use, fcntl.LOCK_SH)  # waits while a keeper is shutting the last server down
            if not self._runs():
                launch = self._launch()
                write_private(self.folder / ADDRESS_FILE, json.dumps(launch.address))
                self._spawn(launch)
        except BaseException:
            if self._use is None:  # who used it before uses it still, and may try again
                use.close()
            raise
        self._use = use

    def _runs(self) -> bool:
        """Whether a server runs here. One that is slow to answer, or still stopping, is waited for."""
        deadline = time.monotonic() + self.start_timeout_seconds
        while not self.alive():
            if self.has_ended():
                return False
            if time.monotonic() > deadline:
                raise ServerUnavailable(
                    f"{self.name} in {self.folder} runs and does not answer; see its log, or end its processes"
                )
            time.sleep(0.05)
        return True

    def _spawn(self, launch: Launch) -> None:
        log = self.log_file
        limit_log(log)
        log_start = log.stat().st_size if log.exists() else 0
        with open(log, "ab", opener=_private) as output:
            keeper = self._spawn_keeper(launch, output)
        deadline = time.monotonic() + self.start_timeout_seconds
        while time.monotonic() < deadline and keeper.poll() is None:
            if self.alive():
                # The keeper outlives us if others use the server; if not, a long-lived parent must not keep a zombie.
                threading.Thread(target=keeper.wait, name=f"{self.name}-keeper", daemon=True).start()
                return
            time.sleep(0.02)
        ended = keeper.poll() is not None
        keeper.terminate()
        keeper.wait()
        if self.alive():  # the keeper of a starter that was killed meanwhile came first
            return
        tail = log.read_bytes()[log_start:][-2000:].decode(errors="replace")
        reason = "did not start" if ended else f"did not answer within {self.start_timeout_seconds:g} s"
        raise ServerUnavailable(f"{self.name} in {self.folder} {reason}; its log ({log}) ends:\n{tail}")

    def _spawn_keeper(self, launch: Launch, log: IO[bytes]) -> subprocess.Popen[bytes]:
        spec = {
            "command": launch.command,
            "account": launch.account,
            "stop_signal": int(self.stop_signal),
            "stale_files": [str(path) for path in launch.stale_files],
            "use_lock": str(self.folder / "use.lock"),
            "run_lock": str(self.folder / "run.lock"),
        }
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", embedded_keeper.__file__, "--keep"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd="/",
            env=server_environment(),
            start_new_session=True,
        )
        assert keeper.stdin is not None
        with suppress(BrokenPipeError), keeper.stdin as pipe:  # it died at once: its log says why
            pipe.write(json.dumps(spec).encode())
        return keeper

    def _others_use_it_or_it_has_stopped(self) -> bool:
        with (
            open(self.folder / "stop.lock", "w", opener=_private) as probe,
            open(self.folder / "use.lock") as use,
            open(self.folder / "run.lock", "a") as run,
        ):
            fcntl.flock(probe, fcntl.LOCK_EX)  # or two that look at the same time take each other for users
            if not _lock(use, fcntl.LOCK_EX) and _lock(use, fcntl.LOCK_SH):
                return True
            return _lock(run, fcntl.LOCK_EX)


def _lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    with open(part, "x", opener=_private, errors="surrogateescape") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def server_environment() -> dict[str, str]:
    """What a server sees of our environment: no PG* variables, no locale, no secrets."""
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR", "HOME")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"LC_ALL": "C", "TZ": "UTC"}


def package_folder(package: str) -> Path | None:
    """Where an installed package lies. Located without importing it: only the servers in the wheels are wanted."""
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) if places else None


def socket_folder(folder: Path, socket_name: str) -> Path:
    """`folder`, or a private one among the temporary files if a socket there had too long an address.

    The same goes for a path with anything but plain letters: it would have to be quoted in a URL, and Alembic's
    configuration takes "%" for an interpolation.
    """
    plain = re.fullmatch(r"[\w/.+-]+", str(folder), re.ASCII)
    if plain and len(os.fsencode(folder)) + 1 + len(socket_name) <= SOCKET_PATH_BYTES:
        return folder
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    short = Path(tempfile.gettempdir()) / f"cyxwiz-{os.getuid()}-{digest}"
    short.mkdir(mode=0o700, exist_ok=True)
    found = short.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.getuid(), folder.stat().st_uid):
        raise ServerUnavailable(f"{short} belongs to someone else: remove it, or set TMPDIR to a folder of your own")
    short.chmod(0o700)
    return short
