"""End a job: its process and everything that this process started.

A tree is followed by three marks, for each alone can be shed: parentage (shed by a double fork), the sessions that
members lead (shed by `setsid`), and what was a member once (kept by pid and start time, whoever is its parent now).
A job's process leads its own session and is a child subreaper, so nobody leaves its tree while it lives.

Killing is: freeze until a new reading shows nobody new, kill all but the root, look again, and kill the root last,
because orphans come to it as long as it exists. Process groups are signalled as one: the kernel does that under one
lock and a fork that is under way fails, so a storm of short-lived children cannot run away from it.

Weak spot: a process that did `setsid` and lost its parent *after the root was dead* is no longer ours to see; see
`orphans_of`. `workers.attempt_cgroup` has no weak spot, where the machine offers it.
"""

import os
import signal
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress

import psutil

from workers.process_table import Process, find_process, process_table

_POLL_SECONDS = 0.01
#: A process in uninterruptible sleep does not stop; waiting longer for it would only delay the kill of the others.
_FREEZE_SECONDS = 0.5


class ProcessTree:
    """A process and its descendants, followed through re-parenting. Never holds the calling process."""

    def __init__(self, pid: int, started: float | None = None) -> None:
        """`started` is `started_at(pid)` as it was when the process was ours; None takes whoever has the pid now."""
        if pid <= 1 or pid == os.getpid():
            raise ValueError(f"pid {pid} is not a job: give the pid of a child process")
        self.root_pid = pid
        self._members: dict[int, float] = {}
        self._sessions: set[int] = set()
        root = find_process(pid)
        if root is None:
            # A session outlives its leader, and its number goes to no new process while it has members.
            self._sessions.add(pid)
        elif started is None or root.started == started:
            self._admit(root)

    def processes(self) -> list[Process]:
        """A fresh reading of the living members."""
        table = process_table()
        children: dict[int, list[Process]] = {}
        for row in table.values():
            children.setdefault(row.parent_pid, []).append(row)
        frontier = [row for row in table.values() if self._members.get(row.pid) == row.started]
        while True:
            while frontier:
                for child in children.get(frontier.pop().pid, ()):
                    if self._admit(child):
                        frontier.append(child)
            frontier = [row for row in table.values() if row.session in self._sessions and self._admit(row)]
            if not frontier:
                break
        return [row for row in table.values() if row.alive and self._members.get(row.pid) == row.started]

    def signal(self, signal_number: int, processes: Collection[Process]) -> None:
        """Signal these members; where a session is the tree's own, its whole process groups, each in one step."""
        groups = {row.group for row in processes if row.session in self._sessions}
        for group in groups:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal_number)
        signal_each(signal_number, (row for row in processes if row.group not in groups))

    def _admit(self, row: Process) -> bool:
        if row.pid == os.getpid() or self._members.get(row.pid) == row.started:
            return False
        self._members[row.pid] = row.started
        if row.session == row.pid and row.session != os.getsid(0):
            self._sessions.add(row.session)
        return True


def started_at(pid: int) -> float | None:
    """What tells this process from a later one with the same pid, for `kill_tree`; None if there is none."""
    row = find_process(pid)
    return None if row is None else row.started


def signal_each(signal_number: int, processes: Iterable[Process]) -> None:
    """Signal each of these, unless its pid belongs to somebody else by now."""
    for row in processes:
        if started_at(row.pid) == row.started:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(row.pid, signal_number)


def kill_tree(
    pid: int, grace_seconds: float = 0.0, *, started: float | None = None, timeout_seconds: float = 5.0
) -> list[int]:
    """Kill a process and everything it started; with a grace, ask them by SIGTERM first.

    `started` is `started_at(pid)` from when the process was known to be ours: if the pid is somebody else's by now,
    nothing is killed. Nobody is waited for (`waitpid` stays the parent's), a zombie counts as gone. Returns the pids
    that still live after `timeout_seconds`: those hang in the kernel (a dead disk or GPU), and so does the hardware
    they hold. Call it also for a process that has ended: what it left in its session goes too.
    """
    tree = ProcessTree(pid, started)
    if grace_seconds > 0:
        _terminate(tree, grace_seconds)
    deadline = time.monotonic() + timeout_seconds
    while True:
        frozen = _freeze(tree)
        signal_each(signal.SIGKILL, (row for row in frozen if row.pid != pid))
        _until(lambda: all(row.pid == pid for row in tree.processes()), _FREEZE_SECONDS)
        tree.signal(signal.SIGKILL, tree.processes())
        if _until(lambda: not tree.processes(), _FREEZE_SECONDS):
            return []
        if time.monotonic() >= deadline:
            return sorted(row.pid for row in tree.processes())


def ask_tree_to_end(pid: int, *, started: float | None = None) -> None:
    """SIGTERM to a process and everything it started, without waiting. `started` as for `kill_tree`."""
    _ask(ProcessTree(pid, started))


def orphans_of(reaper_pid: int, known_pids: Iterable[int]) -> list[Process]:
    """Living children of this process that it did not start itself: daemons that a dead job left to its reaper.

    `known_pids` are the children that belong there. Give each of the others to `kill_tree(pid, started=started)`.
    """
    known = set(known_pids)
    return [
        row for row in process_table().values() if row.parent_pid == reaper_pid and row.alive and row.pid not in known
    ]


def tree_memory_bytes(pid: int) -> int:
    """Memory that this tree holds: shared pages counted in parts (PSS) where the kernel says so, else the plain RSS."""
    return sum(_memory_bytes(row.pid) for row in ProcessTree(pid).processes())


def _ask(tree: ProcessTree) -> None:
    members = tree.processes()
    tree.signal(signal.SIGTERM, members)
    tree.signal(signal.SIGCONT, members)  # a stopped process hears of SIGTERM only when it goes on


def _terminate(tree: ProcessTree, grace_seconds: float) -> None:
    _ask(tree)
    _until(lambda: not tree.processes(), grace_seconds)


def _freeze(tree: ProcessTree) -> list[Process]:
    deadline = time.monotonic() + _FREEZE_SECONDS
    asked = set[Process]()
    while True:
        members = tree.processes()
        new = [row for row in members if row._replace(state="T") not in asked]
        if time.monotonic() >= deadline or not (new or any(row.state not in "TtD" for row in members)):
            return members
        tree.signal(signal.SIGSTOP, new)
        asked.update(row._replace(state="T") for row in new)
        if not new:
            time.sleep(_POLL_SECONDS / 10)


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _memory_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except OSError:
        with suppress(psutil.Error):
            return int(psutil.Process(pid).memory_info().rss)
        return 0
