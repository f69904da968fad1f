"""The keeper of one embedded server: a script of its own that needs nothing but the standard library.

It runs in its own session (so Ctrl-C in a terminal does not reach it), starts the server and stops it when no process
uses it any more. Use is counted with flock(): every user holds a shared lock, and the kernel drops it at SIGKILL too,
so there is no list of pids that can go stale. The keeper tries for the exclusive lock; having it means that nobody is
left. If the keeper itself is killed, the kernel sends the server its stop signal (Linux only).
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: how often the keeper looks whether somebody still uses the server
POLL_SECONDS = 0.25
#: how long an orderly stop may take before the server is stopped the hard way
STOP_SECONDS = 60.0
#: a keeper is started only where no server runs; whoever looks at the lock holds it for microseconds
LOCK_SECONDS = 2.0
PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
#: "nobody" on every Linux: the id that a nested user namespace shows in place of root's
NOBODY = 65534


def keep(spec: dict[str, Any]) -> int:
    """Run the server of `spec` until nobody uses it, or until SIGTERM; return 0 if it ended well."""
    terminated: list[int] = []
    os.umask(0o077)
    with open(spec["run_lock"], "w") as run, open(spec["use_lock"]) as use:
        # The server inherits this lock, so there is no second server on the same folder until every process of the
        # first one is gone, however it ended. Redis has no such lock of its own.
        if not _locks_within(run.fileno(), LOCK_SECONDS):
            return 1
        for stale in spec["stale_files"]:
            Path(stale).unlink(missing_ok=True)
        server = _spawn(spec, run.fileno())
        signal.signal(signal.SIGTERM, lambda *_: terminated.append(1))
        while server.poll() is None:
            # Once nobody uses it the lock is kept: newcomers wait until the server has stopped.
            if terminated or _locks(use.fileno()):
                _stop(server, spec["stop_signal"])
            else:
                time.sleep(POLL_SECONDS)
        if server.returncode:
            # A server that was killed has not said so itself.
            sys.stderr.write(f"the server ended with status {server.returncode}\n")
    return 1 if server.returncode else 0


def _locks_within(lock: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not _locks(lock):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _spawn(spec: dict[str, Any], run_lock: int) -> subprocess.Popen[bytes]:
    user, group = spec["account"] or (None, None)
    return subprocess.Popen(
        spec["command"],
        user=user,
        group=group,
        extra_groups=None if user is None else [],
        pass_fds=(run_lock,),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,  # the log
        # Sound here, because the keeper has one thread. It runs after setuid, which would clear the signal again.
        preexec_fn=_die_with_parent(spec["stop_signal"]),  # noqa: PLW1509
    )


def _die_with_parent(stop_signal: int) -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    libc, keeper = ctypes.CDLL(None), os.getpid()

    def ask_kernel() -> None:
        libc.prctl(PR_SET_PDEATHSIG, stop_signal)
        if os.getppid() != keeper:  # killed between fork and prctl
            os._exit(1)

    return ask_kernel


def _locks(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _stop(server: subprocess.Popen[bytes], stop_signal: int) -> None:
    server.send_signal(stop_signal)
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        # PostgreSQL's SIGQUIT ends its backends too and recovers from the log at the next start.
        server.send_signal(signal.SIGQUIT if stop_signal == signal.SIGINT else signal.SIGKILL)
        server.wait()


def nested_command(stop_signal: int, command: list[str]) -> list[str]:
    """`command`, run as "nobody" in a user namespace of its own: for a root that may not change to another user."""
    return [sys.executable, "-I", "-S", __file__, "--nested", str(int(stop_signal)), *command]


def enter_nested_user(stop_signal: int, command: list[str]) -> None:
    """Become "nobody" in a new user namespace, whose files are still root's outside, and run `command` in place."""
    uid, gid, libc = os.geteuid(), os.getegid(), ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWUSER)")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {uid} 1"), ("gid_map", f"{NOBODY} {gid} 1")):
        Path("/proc/self", name).write_text(text)
    libc.prctl(PR_SET_PDEATHSIG, stop_signal)
    os.execv(command[0], command)  # noqa: S606 - an argument list, no shell


if __name__ == "__main__":
    if sys.argv[1] == "--keep":
        sys.exit(keep(json.load(sys.stdin)))
    enter_nested_user(int(sys.argv[2]), sys.argv[3:])
