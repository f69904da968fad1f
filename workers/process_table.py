"""One reading of the machine's process table: who runs, who started it, in which session."""

import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

import psutil


class Process(NamedTuple):
    """A row of the table. `pid` with `started` is an identity: the kernel reuses a pid, never both."""

    pid: int
    parent_pid: int
    group: int
    session: int
    #: Linux: clock ticks since boot. Elsewhere: seconds since the epoch. Only ever compared for equality and order.
    started: float
    #: R running, S sleeping, D uninterruptible, T stopped, Z zombie, X dead
    state: str

    @property
    def alive(self) -> bool:
        return self.state not in "ZX"

    @property
    def stopped(self) -> bool:
        return self.state in "Tt"


def process_table() -> dict[int, Process]:
    """Every process that this user may see, by pid. Not atomic: a process may start or end during the reading."""
    rows = _from_proc() if sys.platform == "linux" else _from_psutil()
    return {row.pid: row for row in rows}


def find_process(pid: int) -> Process | None:
    """The process with this pid (a zombie too), or None."""
    return _read_stat(pid) if sys.platform == "linux" else process_table().get(pid)


def _from_proc() -> Iterator[Process]:
    # One read for each process: psutil takes three for the same facts, which shows on a host with thousands of them.
    for name in os.listdir("/proc"):
        if name.isdigit() and (row := _read_stat(int(name))) is not None:
            yield row


def _read_stat(pid: int) -> Process | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read().decode("utf-8", "replace")
    except OSError:
        return None
    # The name in parentheses may hold blanks and parentheses itself, so count from the last one (man 5 proc_pid_stat).
    fields = line.rpartition(")")[2].split()
    return Process(
        pid=pid,
        parent_pid=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        started=float(fields[19]),
        # A main thread that has ended looks like a zombie while the process's other threads (field 20) run on.
        state="S" if fields[0] == "Z" and int(fields[17]) > 1 else fields[0],
    )


_STATES = {psutil.STATUS_RUNNING: "R", psutil.STATUS_STOPPED: "T", psutil.STATUS_ZOMBIE: "Z", psutil.STATUS_DEAD: "X"}


def _from_psutil() -> Iterator[Process]:
    for process in psutil.process_iter(["ppid", "create_time", "status"]):
        try:
            group, session = os.getpgid(process.pid), os.getsid(process.pid)
        except OSError:
            continue
        info = process.info
        state = _STATES.get(info["status"], "S")
        yield Process(process.pid, info["ppid"] or 0, group, session, info["create_time"] or 0.0, state)
