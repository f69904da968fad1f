"""Who runs PostgreSQL when we are root: it refuses to start as root itself.

An ordinary user runs it as itself. As root it runs as the owner of a data folder that is already there, else as the
account "postgres" or "nobody". Folders that this account cannot reach (say, below /root) are not opened up: a copy of
the binaries and the data then lie in /var/lib/cyxwiz. In a sandbox that has no other user than root, PostgreSQL runs
as "nobody" in a user namespace of its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cyxwiz_tasks.errors import ServerUnavailable
from db.embedded_keeper import nested_command
from db.embedded_server import server_environment, write_private

ACCOUNTS = ("postgres", "nobody")
#: where root keeps what the account could not reach in its place
SHARED_FOLDER = Path("/var/lib/cyxwiz")
STOP_SIGNAL = int(signal.SIGINT)


@dataclass(frozen=True)
class Account:
    """Who the server runs as: another user, or ourselves (uid None), perhaps in a nested user namespace."""

    uid: int | None = None
    gid: int | None = None
    nested: bool = False

    @property
    def ids(self) -> tuple[int, int] | None:
        return None if self.uid is None or self.gid is None else (self.uid, self.gid)

    def command(self, command: list[str]) -> list[str]:
        return nested_command(STOP_SIGNAL, command) if self.nested else command

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command as this account. Raises PermissionError if we may not become it."""
        return subprocess.run(
            self.command(command),
            user=self.uid,
            group=self.gid,
            extra_groups=None if self.uid is None else [],
            cwd="/",
            env=server_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )

    def can(self, command: list[str]) -> bool:
        try:
            return self.run(command).returncode == 0
        except OSError:
            return False

    def give(self, path: Path) -> None:
        """Make the account the owner of `path` and all that is in it."""
        if self.uid is None or self.gid is None:
            return
        for found in (path, *path.rglob("*")):
            os.chown(found, self.uid, self.gid, follow_symlinks=False)


def choose_account(home: Path) -> Account:
    """The account to run the server of data folder `home` as.

    Raises ServerUnavailable if we are root and can be nobody else.
    """
    if os.geteuid() != 0:
        return Account()
    owner = home.stat()
    if owner.st_uid != 0:
        candidates = [Account(owner.st_uid, owner.st_gid)]
    else:
        known = [entry for entry in pwd.getpwall() if entry.pw_name in ACCOUNTS]
        known.sort(key=lambda entry: ACCOUNTS.index(entry.pw_name))
        candidates = [Account(entry.pw_uid, entry.pw_gid) for entry in known]
    for account in (*candidates, Account(nested=True)):
        if account.can(["/bin/sh", "-c", "exit 0"]):
            return account
    raise ServerUnavailable(
        "PostgreSQL does not run as root, and this root can become neither 'postgres' nor 'nobody': "
        "start it as an ordinary user, or set CYXWIZ_DATABASE_URL to a server that runs"
    )


def home_of(folder: Path) -> Path:
    """Where the server's data lie: ``folder/server``, or the place that ``folder/location.txt`` names."""
    elsewhere = folder / "location.txt"
    return Path(elsewhere.read_text().strip()) if elsewhere.exists() else folder / "server"


def place_home(folder: Path) -> tuple[Path, Account]:
    """The folder that holds the server's data, made if needed, and the account that owns it.

    It is ``folder/server``, or a place that the account can reach, whose name is kept in ``folder/location.txt``.
    """
    elsewhere, home = folder / "location.txt", home_of(folder)
    home.mkdir(mode=0o700, parents=elsewhere.exists(), exist_ok=True)
    account = choose_account(home)
    if account.ids is None:
        return home, account
    if not elsewhere.exists():
        folder.chmod(folder.stat().st_mode | 0o011)  # to pass through: the locks in it stay ours
        if home.stat().st_uid == 0:
            account.give(home)
        if not account.can(["/bin/sh", "-c", 'cd "$1" && test -w .', "sh", str(home)]):
            home = _move_home(folder, home)
    if home.stat().st_uid == 0:
        account.give(home)
    return home, account


def _move_home(folder: Path, home: Path) -> Path:
    """A place for the data that the account can reach. Its name is new, so nobody finds an older folder's data."""
    if any(home.iterdir()):
        raise ServerUnavailable(
            f"PostgreSQL does not run as root, and the owner of its data in {home} cannot get there: "
            "allow others to pass the folders above it (chmod o+x), or move it where they can"
        )
    home.rmdir()
    place = _shared("data") / secrets.token_hex(8)
    place.mkdir(mode=0o700)
    write_private(folder / "location.txt", f"{place}\n")
    return place


def reachable_binaries(binaries: Path, account: Account) -> Path:
    """`binaries`, or a copy of them where the account cannot run them."""
    if account.ids is None or account.can([str(binaries / "postgres"), "--version"]):
        return binaries
    source = binaries.parent  # the installation: bin, lib and share
    stamp = (binaries / "postgres").stat()
    digest = hashlib.sha256(f"{source} {stamp.st_mtime_ns} {stamp.st_size}".encode(errors="surrogateescape"))
    copies = _shared("bin")
    with open(copies / "copy.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        copy = copies / digest.hexdigest()[:16]
        if not copy.exists():
            _copy_installation(source, copies / "part")
            (copies / "part").rename(copy)
    return copy / source.parent.name / source.name / "bin"


def _copy_installation(source: Path, target: Path) -> None:
    """Copy what a server needs. A wheel's own libraries lie beside the package, and are found by that relative path."""
    shutil.rmtree(target, ignore_errors=True)  # left by a kill half way
    package = source.parent
    unneeded = shutil.ignore_patterns("include", "*.a", "pkgconfig", "doc", "man")
    for name in ("bin", "lib", "share"):
        if (source / name).exists():
            shutil.copytree(source / name, target / package.name / source.name / name, symlinks=True, ignore=unneeded)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, target / libraries.name)
    subprocess.run(["chmod", "-R", "go+rX", str(target)], check=True)


def _shared(name: str) -> Path:
    for folder in (SHARED_FOLDER, SHARED_FOLDER / name):
        folder.mkdir(exist_ok=True, parents=True)
        folder.chmod(0o755)
    return SHARED_FOLDER / name
